-- One row per Idempotency-Key: the request's hash, the answer, and the expiry of the key.
-- Keys are compared as bytes, hence COLLATE "C": a comparison needs no locale, and an update of the
-- system's locale cannot corrupt the index.
CREATE TABLE idempotency_keys (
    key             text        COLLATE "C" PRIMARY KEY,
    request_hash    bytea       NOT NULL,
    response_status smallint    NOT NULL,
    response_body   bytea       NOT NULL,
    order_id        uuid        NOT NULL,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL
);

-- For the sweeper, which deletes expired keys in small batches.
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
