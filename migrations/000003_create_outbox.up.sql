-- Events that are committed with their order and not yet acknowledged by the broker. Rows live for milliseconds.
-- The api writes one event per order, order.created; ids sort as creation times do, so the key is also the order
-- in which the relay publishes.
CREATE TABLE outbox (
    order_id    uuid        PRIMARY KEY,
    payload     bytea       NOT NULL,
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
