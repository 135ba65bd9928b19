-- The one product's units. Counters spare the audit a scan of all reservations.
CREATE TABLE stock (
    id        smallint PRIMARY KEY CHECK (id = 1),
    available bigint   NOT NULL CHECK (available >= 0),
    held      bigint   NOT NULL DEFAULT 0 CHECK (held >= 0),
    sold      bigint   NOT NULL DEFAULT 0 CHECK (sold >= 0)
);

-- One row for each saga that sent a command. Rows are kept for good: they are what makes commands idempotent.
CREATE TABLE reservations (
    saga_id    uuid        PRIMARY KEY,
    units      bigint      NOT NULL CHECK (units >= 0),
    state      text        NOT NULL CHECK (state IN ('held', 'sold', 'released', 'refused')),
    reason     text        CHECK ((reason IS NOT NULL) = (state = 'refused')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
