#!/bin/sh
# Configures pgAdmin's server from the programs' variables, then starts pgAdmin as its image does.
set -eu
umask 077

# Of several servers, the first.
DB_HOST=${DB_HOST%%,*} DB_PORT=${DB_PORT%%,*}

# A colon or backslash is escaped in a password file.
escaped=$(printf '%s' "$DB_PASSWORD" | sed 's/[\\:]/\\&/g')
echo "$DB_HOST:$DB_PORT:*:$DB_USER:$escaped" >/tmp/pgpass

cat >"$PGADMIN_SERVER_JSON_FILE" <<END
{"Servers": {"1": {
  "Name": "tbd", "Group": "tbd", "Host": "$DB_HOST", "Port": $DB_PORT, "MaintenanceDB": "$DB_NAME",
  "Username": "$DB_USER", "PassFile": "/tmp/pgpass", "SSLMode": "prefer"
}}}
END
exec /entrypoint.sh
