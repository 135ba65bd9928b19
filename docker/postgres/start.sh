#!/bin/sh
# Starts PostgreSQL as its image does, with certificates from /certs. PostgreSQL wants to own its key.
set -eu

install_certificates() {
  for pair in postgres.pem:server.crt postgres.key:server.key ca.pem:ca.crt; do
    install -D -o postgres -m 600 "/certs/${pair%:*}" "/etc/tls/${pair#*:}"
  done
}

install_certificates
# Later certificates are for new sessions.
while sleep 60; do
  cmp -s /certs/postgres.pem /etc/tls/server.crt && continue
  if install_certificates; then gosu postgres pg_ctl reload -s -D "$PGDATA" || true; fi
done &
exec docker-entrypoint.sh "$@"
