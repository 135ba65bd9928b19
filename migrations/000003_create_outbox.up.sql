-- Events that are committed with their order and not yet acknowledged by the broker. Rows live for
-- milliseconds. The api writes one event per order, order.created. Ids sort by creation time, so the
-- relay publishes in the order of the key.
CREATE TABLE outbox (
    order_id    uuid        PRIMARY KEY,
    payload     bytea       NOT NULL,
    traceparent text,
    created_at  timestamptz NOT NULL DEFAULT now()
) WITH (
    -- A queue: nearly every row ever written is dead. The default threshold (a fifth of the table plus
    -- 50 rows) suits the table's size but not its rate of change. So vacuum after a fixed number of
    -- dead rows, without pauses.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);
