#!/bin/sh
# Writes nginx's lists of api instances, which come and go behind a name: NGINX_API, or `api`. If it names
# none, those behind NGINX_API_BACKUP are asked, if that is set. The nginx image runs this script before
# nginx starts. With NGINX_ENTRYPOINT_LOCAL_RESOLVERS set, the image provides the resolvers; otherwise it
# is Docker's.
set -eu
config=$NGINX_ENVSUBST_OUTPUT_DIR/nginx.conf
api=${NGINX_API:-api} backup=${NGINX_API_BACKUP:-}

# write LIST : LIST prints the servers on a port.
write() {
    "$1" 8080 >"$NGINX_FOLDER/api-instances.conf"
    "$1" 50051 >"$NGINX_FOLDER/api-grpc-instances.conf"
}

# nginx 1.27.3 and newer resolves names continuously.
names() {
    echo "resolver ${NGINX_LOCAL_RESOLVERS:-127.0.0.11} valid=2s ipv6=off; server $api:$1 resolve max_fails=0;"
    # Twice: one address may stand for several instances, so a second try may reach another.
    [ -z "$backup" ] || for _ in 1 2; do echo "server $backup:$1 resolve max_fails=0 backup;"; done
}
write names
if nginx -t -q -c "$config" 2>/dev/null; then
    exit 0
fi

# An older nginx resolves only when it starts, so this script looks the names up and reloads nginx.
look_up() { getent ahostsv4 "$1" | sed -n 's/^\([0-9.]*\) .*/\1/p' | sort -u; }
instances() {
    found=$(look_up "$api")
    [ -n "$found" ] || [ -z "$backup" ] || found=$(look_up "$backup")
    echo "$found"
}
addresses() {
    [ -n "$list" ] || echo "server 127.0.0.1:9;" # nothing listens on the discard port: 502 until there is an api
    for address in $list; do echo "server $address:$1 max_fails=0;"; done
}
list=$(instances)
write addresses
nginx -t -q -c "$config"
(
    while sleep 2; do
        now=$(instances)
        if [ -n "$now" ] && [ "$now" != "$list" ]; then
            list=$now
            write addresses
            nginx -s reload -c "$config" || list= # nginx does not run yet: the next round tries again
        fi
    done
) &
