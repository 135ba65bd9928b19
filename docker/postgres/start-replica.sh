#!/bin/sh
# Starts PostgreSQL as its image does. With PRIMARY and an empty volume, it first copies that server, and
# then follows it as a standby until it is promoted.
set -eu

if [ -n "$PRIMARY" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -d -m 700 "$PGDATA"
  export PGPASSWORD="$POSTGRES_PASSWORD"
  until pg_isready -q -h "$PRIMARY"; do sleep 1; done
  # --write-recovery-conf makes it a standby that streams from PRIMARY.
  pg_basebackup -h "$PRIMARY" -U "$POSTGRES_USER" -D "$PGDATA" --checkpoint=fast --write-recovery-conf
fi
exec docker-entrypoint.sh "$@"
