-- Events that are committed with their order and not yet acknowledged by the broker. Rows live for milliseconds.
CREATE TABLE outbox (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    uuid        NOT NULL,
    topic       text        NOT NULL,
    payload     text        NOT NULL,
    traceparent text,
    created_at  timestamptz NOT NULL DEFAULT now()
) WITH (
    -- A queue: nearly every row ever written is dead. The default threshold (a fifth of the table plus 50 rows)
    -- would do for its size, but not for its rate: clean up after a fixed number of dead rows, without pausing.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);

-- Acknowledged events are deleted by the order they belong to.
CREATE INDEX outbox_order_id ON outbox (order_id);
