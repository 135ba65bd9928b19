-- PostgreSQL's minimal work for an accepted order: key, order and event, one statement, one commit. Sizes
-- as the api's.
\set amount random(1, 1000000)
WITH one AS MATERIALIZED (
    -- Increasing, as a UUIDv7 is.
    SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || substr(replace(gen_random_uuid()::text, '-', ''), 13))::uuid AS id
), new_key AS (
    INSERT INTO idempotency_keys (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
    SELECT gen_random_uuid()::text, sha256('user@example.com'), 202,
           '{"id":"01900000-0000-7000-8000-000000000000","customer_email":"user@example.com","amount_cents":1999,"status":"pending","created_at":"2025-01-01T12:00:00.000000Z","updated_at":"2025-01-01T12:00:00.000000Z"}'::bytea,
           id, now(), now() + interval '72 hours' FROM one
), new_order AS (
    INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
    SELECT id, 'user@example.com', :amount::bigint, 'pending', now(), now() FROM one
)
INSERT INTO outbox (order_id, payload, traceparent)
SELECT id,
       '{"specversion":"1.0","id":"5d0f4c1b-7e21-5cc1-9a63-01922f3e8a54","source":"/tbd/orders","type":"order.created","subject":"01900000-0000-7000-8000-000000000000","time":"2025-01-01T12:00:00.000000Z","datacontenttype":"application/json","data":{"id":"01900000-0000-7000-8000-000000000000","customer_email":"user@example.com","amount_cents":1999,"status":"pending","created_at":"2025-01-01T12:00:00.000000Z","updated_at":"2025-01-01T12:00:00.000000Z"}}'::bytea,
       '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00' FROM one;
