#!/bin/sh
# Writes nginx's list of api instances, which come and go behind one name: NGINX_API, or `api`. The
# nginx image runs it before nginx starts. With NGINX_ENTRYPOINT_LOCAL_RESOLVERS set, the image
# provides the resolvers; otherwise it is Docker's.
set -eu
file=$NGINX_FOLDER/api-instances.conf
config=$NGINX_ENVSUBST_OUTPUT_DIR/nginx.conf
api=${NGINX_API:-api}

# nginx 1.27.3 and newer resolves the name continuously.
echo "resolver ${NGINX_LOCAL_RESOLVERS:-127.0.0.11} valid=2s ipv6=off; server $api:8080 resolve max_fails=0;" >"$file"
if nginx -t -q -c "$config" 2>/dev/null; then
    exit 0
fi

# An older nginx resolves only when it starts, so this script looks the name up and reloads nginx.
instances() {
    getent ahostsv4 "$api" | sed -n 's/^\([0-9.]*\) .*/server \1:8080 max_fails=0;/p' | sort -u
}
list=$(instances)
echo "${list:-server 127.0.0.1:9;}" >"$file" # nothing listens on the discard port: 502 until there is an api
nginx -t -q -c "$config"
(
    while sleep 2; do
        list=$(instances)
        if [ -n "$list" ] && [ "$list" != "$(cat "$file")" ]; then
            echo "$list" >"$file"
            nginx -s reload -c "$config"
        fi
    done
) &
