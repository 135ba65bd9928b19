-- :orders pending orders with their events (of :type), as after that many requests in outbox mode. No participant refuses their amounts.
TRUNCATE orders, idempotency_keys, outbox;
INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid,
       'user' || n || '@example.com', 100 * n, 'pending', now(), now()
  FROM generate_series(1, :orders) AS n;
VACUUM ANALYZE orders;
CHECKPOINT;
INSERT INTO outbox (order_id, payload)
SELECT id, convert_to(json_build_object(
         'specversion', '1.0', 'id', id, 'source', '/tbd/orders', 'type', :'type', 'subject', id, 'time', created_at,
         'datacontenttype', 'application/json', 'data', json_build_object(
           'id', id, 'customer_email', customer_email, 'amount_cents', amount_cents, 'status', status,
           'created_at', created_at, 'updated_at', updated_at))::text, 'UTF8')
  FROM orders;
