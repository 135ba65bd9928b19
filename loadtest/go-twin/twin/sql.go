package twin

// A statement with tbd's name and tbd's text.
type statement struct{ name, sql string }

var (
	submitOne = statement{"INSERT order", `
WITH known AS (
    SELECT request_hash, response_status, response_body, order_id
      FROM idempotency_keys WHERE key = $1 AND expires_at > now()
), fresh AS (
    INSERT INTO idempotency_keys AS k
           (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
    SELECT $1, $2, $3, $4, $5, now(), now() + make_interval(secs => $6)
     WHERE NOT EXISTS (SELECT FROM known)
    ON CONFLICT (key) DO UPDATE
       SET request_hash = excluded.request_hash, response_status = excluded.response_status,
           response_body = excluded.response_body, order_id = excluded.order_id,
           created_at = excluded.created_at, expires_at = excluded.expires_at
     WHERE k.expires_at <= now()
 RETURNING order_id
), new_order AS (
    INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
    SELECT $5, $7, $8, 'pending', $9, $9 FROM fresh
), event AS (
    INSERT INTO outbox (order_id, payload, traceparent)
    SELECT $5, $10, $11 FROM fresh
)
SELECT EXISTS (SELECT FROM fresh) AS is_first,
       known.request_hash, known.response_body, known.order_id, outbox.payload, outbox.traceparent
  FROM (VALUES (1)) AS one
       LEFT JOIN known ON true
       LEFT JOIN LATERAL (
           SELECT payload, traceparent FROM outbox WHERE order_id = known.order_id LIMIT 1) AS outbox ON true`}

	submitMany = statement{"INSERT orders", `
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::bytea[], $3::smallint[], $4::bytea[], $5::uuid[],
                         $6::float8[], $7::text[], $8::bigint[], $9::timestamptz[],
                         $10::bytea[], $11::text[])
           WITH ORDINALITY AS input (key, request_hash, response_status, response_body, order_id,
                                     ttl, customer_email, amount_cents, created_at,
                                     payload, traceparent, n)
), known AS (
    SELECT n, k.* FROM input CROSS JOIN LATERAL (
        SELECT request_hash, response_status, response_body, order_id
          FROM idempotency_keys WHERE key = input.key AND expires_at > now() LIMIT 1) k
), fresh AS (
    INSERT INTO idempotency_keys AS k
           (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
    SELECT key, request_hash, response_status, response_body, order_id,
           now(), now() + make_interval(secs => ttl)
      FROM input WHERE n NOT IN (SELECT n FROM known) ORDER BY key
    ON CONFLICT (key) DO UPDATE
       SET request_hash = excluded.request_hash, response_status = excluded.response_status,
           response_body = excluded.response_body, order_id = excluded.order_id,
           created_at = excluded.created_at, expires_at = excluded.expires_at
     WHERE k.expires_at <= now()
 RETURNING order_id
), new_orders AS (
    INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
    SELECT order_id, customer_email, amount_cents, 'pending', created_at, created_at
      FROM input JOIN fresh USING (order_id)
), events AS (
    INSERT INTO outbox (order_id, payload, traceparent)
    SELECT order_id, payload, traceparent FROM input JOIN fresh USING (order_id)
)
SELECT fresh.order_id IS NOT NULL AS is_first,
       known.request_hash, known.response_body, known.order_id, outbox.payload, outbox.traceparent
  FROM input
       LEFT JOIN fresh ON fresh.order_id = input.order_id
       LEFT JOIN known ON known.n = input.n
       LEFT JOIN LATERAL (
           SELECT payload, traceparent FROM outbox WHERE order_id = known.order_id LIMIT 1) AS outbox ON true
 ORDER BY input.n`}

	selectKey = statement{"SELECT idempotency key", `
SELECT false AS is_first, request_hash, response_body, k.order_id, payload, traceparent
  FROM idempotency_keys k
       LEFT JOIN LATERAL (
           SELECT payload, traceparent FROM outbox WHERE order_id = k.order_id LIMIT 1) AS outbox ON true
 WHERE key = $1 AND expires_at > now()`}

	sweepKeys = statement{"DELETE idempotency keys", `
DELETE FROM idempotency_keys WHERE key = ANY (ARRAY(
    SELECT key FROM idempotency_keys WHERE expires_at <= now()
     ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))`}

	selectOrder = statement{"SELECT order", `
SELECT id, customer_email, amount_cents, status, created_at, updated_at FROM orders WHERE id = $1`}

	selectById = statement{"SELECT orders by id", `
SELECT id, customer_email, amount_cents, status, created_at, updated_at FROM orders WHERE id = ANY($1)`}

	selectPage = statement{"SELECT orders", `
SELECT id, customer_email, amount_cents, status, created_at, updated_at
  FROM orders WHERE id < $1 ORDER BY id DESC OFFSET $2 LIMIT $3`}

	selectPageByStatus = statement{"SELECT orders by status", `
SELECT id, customer_email, amount_cents, status, created_at, updated_at
  FROM orders WHERE id < $1 AND status = $4 ORDER BY id DESC OFFSET $2 LIMIT $3`}

	replaceOrder = statement{"UPDATE order", `
UPDATE orders SET status = $2, updated_at = $3 WHERE id = $1 AND status = $4 AND updated_at = $5`}

	claimOrders = statement{"UPDATE orders processing", `
WITH claimed AS (
    UPDATE orders SET status = 'processing', updated_at = greatest($2, updated_at + interval '1 microsecond')
     WHERE id = ANY($1) AND status = 'pending'
 RETURNING id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
)
SELECT * FROM claimed
UNION ALL
SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
  FROM orders WHERE id = ANY($1) AND status <> 'pending'`}

	selectClaimed = statement{"SELECT orders by id", `
SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason FROM orders WHERE id = ANY($1)`}

	completeOrders = statement{"UPDATE orders completed", `
UPDATE orders SET status = 'completed', updated_at = greatest($2, updated_at + interval '1 microsecond')
 WHERE id = ANY($1) AND status = 'processing'
RETURNING id, customer_email, amount_cents, status, created_at, updated_at`}

	failOrders = statement{"UPDATE orders failed", `
UPDATE orders SET status = 'failed', failure_reason = reason, updated_at = greatest($3, updated_at + interval '1 microsecond')
  FROM unnest($1::uuid[], $2::text[]) AS failure (order_id, reason)
 WHERE id = order_id AND status = 'processing'
RETURNING id, customer_email, amount_cents, status, created_at, updated_at`}

	takeOutbox = statement{"SELECT outbox", `
SELECT order_id, payload, traceparent FROM outbox
 WHERE created_at <= now() - make_interval(secs => $1)
 ORDER BY order_id LIMIT $2 FOR UPDATE SKIP LOCKED`}

	removeOutbox = statement{"DELETE outbox", `DELETE FROM outbox WHERE order_id = ANY($1)`}

	measureOutbox = statement{"SELECT outbox backlog", `
SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM outbox`}
)
