-- One row for each saga that sent a command. Rows are kept for good: they are what makes commands idempotent.
CREATE TABLE payments (
    saga_id      uuid        PRIMARY KEY,
    amount_cents bigint      NOT NULL CHECK (amount_cents >= 0),
    state        text        NOT NULL CHECK (state IN ('authorized', 'captured', 'voided', 'refused')),
    reason       text        CHECK ((reason IS NOT NULL) = (state = 'refused')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
