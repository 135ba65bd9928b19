-- :known orders in an otherwise empty database, oldest first, nearly all in a final status.
TRUNCATE orders, idempotency_keys, outbox;
INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'user' || n || '@example.com', n,
       CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END,
       timestamptz '2024-06-01' + n * interval '1 ms', timestamptz '2024-06-01' + n * interval '1 ms'
  FROM generate_series(1, :known) AS n;
VACUUM ANALYZE orders;
CHECKPOINT;
