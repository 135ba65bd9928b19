-- One known order's status, with all that its indexes cost: what the worker does to each order twice.
\set n random(1, :known)
UPDATE orders SET status = CASE status WHEN 'processing' THEN 'completed' ELSE 'processing' END, updated_at = now()
 WHERE id = ('01900000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid;
