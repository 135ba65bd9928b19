-- One known order by its id.
\set n random(1, :known)
SELECT id, customer_email, amount_cents, status, created_at, updated_at FROM orders
 WHERE id = ('01900000-0000-7000-8000-' || lpad(to_hex(:n::bigint), 12, '0'))::uuid;
