-- One row per Idempotency-Key: what was asked (as a hash), what was answered, and until when the key is remembered.
-- Keys are bytes to us, hence COLLATE "C": comparing them needs no locale, and an update of the system's locale
-- cannot corrupt their index.
CREATE TABLE idempotency_keys (
    key             text        COLLATE "C" PRIMARY KEY,
    request_hash    bytea       NOT NULL,
    response_status smallint    NOT NULL,
    response_body   bytea       NOT NULL,
    order_id        uuid        NOT NULL,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL
);

-- For sweeping expired keys in small batches.
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
