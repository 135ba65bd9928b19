#!/bin/sh
# Starts PostgreSQL as its image does. With PRIMARY and an empty volume, it first copies that server, and
# then follows it as a standby until it is promoted.
set -eu

if [ -n "$PRIMARY" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  install -d -m 700 "$PGDATA"
  export PGPASSWORD="$POSTGRES_PASSWORD"
  until pg_isready -q -h "$PRIMARY"; do sleep 1; done
  # In a folder of its own: without PG_VERSION in its place, a copy that was interrupted is made again.
  find "$PGDATA" -mindepth 1 -delete
  # --write-recovery-conf makes it a standby that streams from PRIMARY.
  pg_basebackup -h "$PRIMARY" -U "$POSTGRES_USER" -D "$PGDATA/copy" --checkpoint=fast --write-recovery-conf
  find "$PGDATA/copy" -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv {} "$PGDATA" \;
  mv "$PGDATA/copy/PG_VERSION" "$PGDATA"
  rmdir "$PGDATA/copy"
fi
exec docker-entrypoint.sh "$@"
