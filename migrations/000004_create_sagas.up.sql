-- The saga of each order that a worker processes as one (WORKER_WORKFLOW=saga); docs/saga.md explains
-- the states. `version` is the fence: a transition is stored only on top of the version before it.
CREATE TABLE sagas (
    order_id   uuid        PRIMARY KEY,
    id         uuid        NOT NULL,
    version    bigint      NOT NULL,
    state      text        NOT NULL CHECK (state IN ('running', 'compensating', 'completed', 'failed')),
    -- The announced command. NULL once the saga has ended.
    command    text,
    -- Every call with its attempts, times and answer, for people and for the saga's end.
    calls      jsonb       NOT NULL,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- When the sweeper last published the order's event again.
    swept_at   timestamptz
    -- Each saga is updated once per step. Free space on its page keeps these updates off the indexes.
) WITH (fillfactor = 50);

-- For the sweeper and the gauges: unfinished sagas are few.
CREATE INDEX sagas_unfinished ON sagas (order_id) WHERE state IN ('running', 'compensating');
