-- One known order's status, including the cost of its indexes; the worker does this twice per order.
\set n random(1, :known)
UPDATE orders SET status = CASE status WHEN 'processing' THEN 'completed' ELSE 'processing' END, updated_at = now()
 WHERE id = ('01900000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid;
