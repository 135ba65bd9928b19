-- The orders. The program generates `id` as a UUIDv7, so ids sort by creation, and the primary key
-- alone serves "newest first".
CREATE TABLE orders (
    id             uuid        PRIMARY KEY,
    customer_email text        NOT NULL,
    amount_cents   bigint      NOT NULL CHECK (amount_cents BETWEEN 1 AND 9007199254740991),
    status         text        NOT NULL CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'canceled')),
    failure_reason text,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);

-- Lists filtered by status, newest first.
CREATE INDEX orders_status_id ON orders (status, id DESC);
