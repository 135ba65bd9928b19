# shellcheck shell=bash disable=SC2034
# Functions that the other scripts share. Source it after `set -euo pipefail`; it starts nothing.
#
# Every started process leaves its process id in a file of its own folder, and is ended by that id
# alone: several stacks and test runs share one machine.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Cache of fetched servers and tools: PostgreSQL, Kafka, and command-line programs under bin/.
# The user that runs PostgreSQL for root cannot enter root's home, so root uses the system's cache.
if ((EUID == 0)); then default_cache=/var/cache; else default_cache=${XDG_CACHE_HOME:-$HOME/.cache}; fi
CACHE=${TBD_CACHE:-$default_cache/tbd}
PATH=$PATH:/usr/sbin:/sbin # holds nginx, and is not on every user's path

POSTGRES_VERSION=17.11.0
KAFKA_VERSION=${KAFKA_VERSION:-4.1.0}
MIGRATE_VERSION=v4.19.0
K6_VERSION=v1.8.1
GHZ_VERSION=v0.120.0
VEGETA_VERSION=v12.12.0
H2SPEC_VERSION=v2.2.1+incompatible # the newest that Go modules know
GRPCURL_VERSION=v1.9.3
GRPC_GO_VERSION=v1.85.0
KUSTOMIZE_VERSION=v5.7.1
KFAKE_SOURCE=$ROOT/tests/kafka/kfake
COLLECTOR_VERSION=0.129.0 # that of docker-compose.yml

POSTGRES_HOME=$CACHE/postgres-$POSTGRES_VERSION
KAFKA_HOME=$CACHE/kafka-$KAFKA_VERSION
COLLECTOR_MANIFEST=$ROOT/tests/observability/collector-builder.yaml
COLLECTOR=$CACHE/bin/otelcol-$COLLECTOR_VERSION-$(sha256sum "$COLLECTOR_MANIFEST" | cut -c 1-12)
KFAKE=$CACHE/bin/kfake-$(cat "$KFAKE_SOURCE"/{main.go,go.mod,go.sum} | sha256sum | cut -c 1-12)
# The folder of a virtual environment; it changes with the requirements file.
python_home() { printf '%s-%s' "$CACHE/$1" "$(sha256sum "$2" | cut -c 1-12)"; }
SCHEMATHESIS_HOME=$(python_home schemathesis "$ROOT/tests/openapi/requirements.txt")
KUBERNETES_VALIDATE_HOME=$(python_home kubernetes-validate "$ROOT/tests/kubernetes/requirements.txt")
PLOTS_HOME=$(python_home plots "$ROOT/loadtest/bench/requirements.txt")
GRPCIO_HOME=$(python_home grpcio "$ROOT/crates/grpc/tests/grpcio/requirements.txt")
LIBRDKAFKA_HOME=$(python_home librdkafka "$ROOT/tests/kafka/requirements.txt")

# Go for the tools: all built alike, so that they share what is compiled, and with less garbage collection, which
# takes a third of the compiler's time. Only the compiler has GOGC: no program is to be measured with it.
GO_COMMAND=(env CGO_ENABLED=0 GOGC=400 GOFLAGS='-buildvcs=false -trimpath' go)

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# need COMMAND=PACKAGE... : makes sure that the commands exist. As root on Debian and its derivatives it
# installs the missing packages; otherwise it prints the command that installs them.
need() {
  local pair missing=() packages=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || { missing+=("${pair%%=*}") && packages+=("${pair#*=}"); }
  done
  ((${#missing[@]})) || return 0
  if command -v apt-get >/dev/null && ((EUID == 0)); then
    say "installing ${packages[*]}"
    install_packages "${packages[@]}" || die "could not install: ${packages[*]}"
  else
    die "missing: ${missing[*]}. On Debian or Ubuntu: sudo apt-get install -y ${packages[*]}"
  fi
}

# Python with virtual environments, which Debian keeps in a package of its own.
need_python() {
  need python3=python3
  python3 -c 'import ensurepip' 2>/dev/null || need ensurepip=python3-venv
}

# Compilers for librdkafka, which the comparisons with tbd need.
need_librdkafka() {
  need cc=gcc g++=g++ make=make
  need_python
}

# A Chromium for the page's tests: any installed one, or else the headless package.
chromium_here() { { type -P chromium-headless-shell chromium chromium-browser google-chrome || true; } | head -n 1; }
need_chromium() { [[ -n $(chromium_here) ]] || need chromium-headless-shell=chromium-headless-shell; }

# Debian's packages start their services (nginx, on port 80) unless policy-rc.d forbids it meanwhile.
install_packages() (
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
)

# wait_until SECONDS WHAT COMMAND... : polls every 100 ms until COMMAND succeeds. When time is up, it
# names WHAT and returns false.
wait_until() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || {
      say "gave up waiting for $what"
      return 1
    }
    sleep 0.1
  done
}

port_in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A free port below the kernel's range for outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    port_in_use "$port" || break
  done
  printf '%s\n' "$port"
}

# running PIDFILE : whether the process whose id is the file's first line is alive. A stale file's id may
# belong to another process by now; the right one has the file's folder on its command line.
running() {
  local pid='' command=''
  [[ ! -r $1 ]] || read -r pid <"$1" || true
  [[ -n $pid ]] || return 1
  for _ in {1..10}; do # it is empty for a moment during exec
    { command=$(tr '\0' ' ' <"/proc/$pid/cmdline"); } 2>/dev/null || return 1
    if [[ -n $command ]] || ended "$pid"; then break; fi
    sleep 0.02
  done
  [[ $command == *"$(dirname "$1")"* ]]
}

# ended PID : whether the process is gone completely. A killed process loses its command line before its
# sockets. Where nothing reaps zombies (process 1 of a plain container), a zombie counts as gone once its
# last thread is.
ended() {
  local status
  status=$(cat "/proc/$1/status" 2>/dev/null) || return 0
  [[ $status == *$'State:\tZ'* && $status == *$'Threads:\t'[01]$'\n'* ]]
}

# record PID PIDFILE : writes the file for a process just started in the background, and waits until its
# exec is done or it has ended.
record() {
  printf '%s\n' "$1" >"$2"
  until running "$2" || ended "$1"; do sleep 0.02; done
}

# stop_pid PIDFILE SIGNAL SECONDS : sends the signal and waits; SIGKILL when time is up.
stop_pid() {
  local pid
  running "$1" || return 0
  read -r pid <"$1"
  kill -"$2" "$pid" 2>/dev/null || true
  kill -CONT "$pid" 2>/dev/null || true # for one that a test has paused
  wait_until "$3" "process $pid to end" ended "$pid" || kill -KILL "$pid" 2>/dev/null || true
}

# ---------------------------------------------------------------------------------------------------- PostgreSQL

# PostgreSQL refuses to run as root, so root runs it as another user. The capability lets that user reach
# its data below folders of root (for example a checkout in /root) without changed permissions.
POSTGRES_USER=nobody
as_postgres() {
  if ((EUID == 0)); then
    setpriv --reuid="$POSTGRES_USER" --regid="$(id -g "$POSTGRES_USER")" --clear-groups \
      --inh-caps=-all,+dac_override --ambient-caps=-all,+dac_override "$@"
  else
    "$@"
  fi
}

# postgres_create FOLDER ROLE-ATTRIBUTES [DATABASE...] : a new cluster with the role tbd (password secret), its database
# tbd, and these databases. FOLDER/data appears once it is complete, so a run that was interrupted begins again.
postgres_create() {
  local data=$1/data.new
  rm -rf "$data"
  mkdir -p "$1"
  ((EUID != 0)) || chown "$POSTGRES_USER" "$1"
  (
    cd "$1" || return
    as_postgres "$POSTGRES_HOME/bin/initdb" --pgdata="$data" --username=postgres --encoding=UTF8 --no-locale \
      --auth=scram-sha-256 --pwfile=<(echo secret) --no-sync >"$1/initdb.log" 2>&1 || { cat "$1/initdb.log" >&2 && return 1; }
    # The bundle has no psql; the server's single-user mode takes statements line by line.
    { printf '%s\n' "CREATE ROLE tbd LOGIN $2 PASSWORD 'secret'" && printf 'CREATE DATABASE %s OWNER tbd\n' tbd "${@:3}"; } |
      as_postgres "$POSTGRES_HOME/bin/postgres" --single -D "$data" postgres >>"$1/initdb.log" 2>&1 &&
      mv "$data" "$1/data"
  )
}

# postgres_start FOLDER PORT [SETTING=VALUE...] : returns once it accepts connections on 127.0.0.1:PORT.
postgres_start() {
  local folder=$1 port=$2 setting options="-c port=$2 -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c logging_collector=off"
  shift 2
  for setting in "$@"; do options+=" -c $setting"; done
  ! port_in_use "$port" || { say "port $port is in use" && return 1; }
  (
    cd "$folder" || return
    as_postgres "$POSTGRES_HOME/bin/pg_ctl" start --wait --timeout=60 --silent --pgdata="$folder/data" \
      --log="$folder/postgres.log" --options="$options" </dev/null >/dev/null 9>&- # 9 is the lock of up and down
  ) || { tail -n 20 "$folder/postgres.log" >&2 && return 1; }
}

# postgres_stop FOLDER [smart|fast|immediate]
postgres_stop() {
  running "$1/data/postmaster.pid" || return 0
  (cd "$1" && as_postgres "$POSTGRES_HOME/bin/pg_ctl" stop --wait --timeout=30 --silent --pgdata="$1/data" --mode="${2:-fast}")
}

# A test's PostgreSQL may lose everything in a power cut.
POSTGRES_FOR_TESTS=(fsync=off synchronous_commit=off full_page_writes=off max_connections=300 shared_buffers=64MB)

# --------------------------------------------------------------------------------------------------------- Kafka

# The classes that Kafka loads, as Java can map them: with them it starts in half the time. Java leaves another
# version's aside.
KAFKA_CLASSES=$KAFKA_HOME/classes.jsa
find_kafka_classes() { # sets the array `classes` to the option that uses them
  classes=()
  [[ ! -e $KAFKA_CLASSES ]] || classes=(-XX:SharedArchiveFile="$KAFKA_CLASSES")
}

kafka_tool() { # kafka_tool MAIN-CLASS ARGUMENTS... : one of Kafka's own command-line programs
  local classes
  find_kafka_classes
  java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "${classes[@]}" -cp "$KAFKA_HOME/*" "$@"
}

# kafka_create FOLDER PORT CONTROLLER-PORT [SETTING=VALUE...] : one node, broker and controller in one
# (KRaft). A setting with a leading -- is an option of formatting, such as --add-scram. The last of two
# equal settings counts.
kafka_create() {
  local folder=$1 port=$2 controller=$3 setting settings=() formatting=()
  shift 3
  for setting in "$@"; do
    if [[ $setting == --* ]]; then formatting+=("$setting"); else settings+=("$setting"); fi
  done
  mkdir -p "$folder"
  printf '%s\n' \
    process.roles=broker,controller node.id=1 "controller.quorum.voters=1@127.0.0.1:$controller" \
    "listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller" \
    "advertised.listeners=PLAINTEXT://127.0.0.1:$port" controller.listener.names=CONTROLLER \
    "log.dirs=$folder/data" auto.create.topics.enable=false group.initial.rebalance.delay.ms=0 \
    group.min.session.timeout.ms=1000 group.consumer.min.session.timeout.ms=1000 group.consumer.session.timeout.ms=10000 \
    group.consumer.min.heartbeat.interval.ms=500 group.consumer.heartbeat.interval.ms=1000 offsets.topic.num.partitions=8 offsets.topic.replication.factor=1 \
    transaction.state.log.num.partitions=4 transaction.state.log.replication.factor=1 \
    transaction.state.log.min.isr=1 share.coordinator.state.topic.replication.factor=1 \
    share.coordinator.state.topic.min.isr=1 num.network.threads=2 num.io.threads=4 "${settings[@]}" >"$folder/server.properties"
  # A formatted folder keeps its data; only the settings are rewritten.
  [[ -e $folder/data/meta.properties ]] || kafka_tool kafka.tools.StorageTool format --config "$folder/server.properties" \
    "${formatting[@]}" --cluster-id="${KAFKA_CLUSTER_ID:-$(kafka_cluster_id)}" >"$folder/format.log" 2>&1 ||
    { cat "$folder/format.log" >&2 && return 1; }
}
kafka_cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c 1-22; }

# kafka_cluster FOLDER PORT PORT PORT : creates and starts three nodes, in FOLDER-1 to FOLDER-3, each with a
# copy of everything, in the racks rack-1 to rack-3. Afterwards each can be stopped, killed and started by its own folder.
kafka_cluster() {
  local folder=$1 ports=("${@:2}") controllers=() voters='' node starting=() started=0
  for node in 1 2 3; do
    controllers[node]=$(free_port)
    voters+=${voters:+,}$node@127.0.0.1:${controllers[node]}
  done
  KAFKA_CLUSTER_ID=$(kafka_cluster_id)
  for node in 1 2 3; do
    {
      kafka_create "$folder-$node" "${ports[node - 1]}" "${controllers[node]}" node.id=$node "controller.quorum.voters=$voters" \
        default.replication.factor=3 min.insync.replicas=2 offsets.topic.replication.factor=3 \
        transaction.state.log.replication.factor=3 transaction.state.log.min.isr=2 share.coordinator.state.topic.replication.factor=3 \
        broker.rack=rack-$node replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector \
        broker.heartbeat.interval.ms=500 broker.session.timeout.ms=4000 && # a killed leader is missed after 4 s, not 9
        kafka_start "$folder-$node" "${KAFKA_FOR_TESTS[@]}"
    } &
    starting+=($!)
  done
  for node in "${starting[@]}"; do wait "$node" || started=1; done
  return $started
}

# kafka_start FOLDER [JAVA-OPTION...] : returns once the broker serves requests.
kafka_start() {
  local folder=$1 log=$1/kafka.log port classes
  shift
  find_kafka_classes
  port=$(sed -n 's/^advertised.listeners=.*://p' "$folder/server.properties" | tail -n 1) # the last setting counts
  ! port_in_use "$port" || { say "port $port is in use" && return 1; }
  : >"$log"
  # A session of its own: Ctrl-C at the terminal reaches only the script, which then stops Kafka.
  setsid java -Xms128m -Xmx256m "${classes[@]}" "$@" -Djava.net.preferIPv4Stack=true -Dlog4j2.level=INFO -cp "$KAFKA_HOME/*" \
    kafka.Kafka "$folder/server.properties" </dev/null >>"$log" 2>&1 9>&- &
  record $! "$folder/kafka.pid"
  disown
  wait_until 60 "Kafka (see $log)" kafka_settled "$folder" || true
  grep -q 'Kafka Server started' "$log" || { tail -n 20 "$log" >&2 && return 1; }
}
kafka_settled() { grep -q 'Kafka Server started' "$1/kafka.log" || ! running "$1/kafka.pid"; }

# kafka_stop FOLDER [SIGNAL]
kafka_stop() { stop_pid "$1/kafka.pid" "${2:-TERM}" 30; }

# Kafka reads keys of tokens only from places that its process was started with.
KAFKA_FOR_TESTS=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1
  "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://${TBD_TEST_SERVERS-}/jwks.json")

# --------------------------------------------------------------------------------------------------------- nginx

# nginx_render FOLDER HOST:PORT HOST:GRPC-PORT LOGS INSTANCE... : writes FOLDER/nginx.conf, the edge in
# front of these api instances, each PORT:GRPC-PORT, or TWIN=PORT for a twin's api below /twins/TWIN/. With ca=FILE
# nginx speaks TLS to the instances, whose certificates must be of this CA.
nginx_render() {
  local folder=$1 listen=$2 grpc_listen=$3 logs=$4 instance upstream='' grpc_upstream='' ca=''
  shift 4
  rm -rf "$folder/twins"
  mkdir "$folder/twins"
  for instance in "$@"; do
    case $instance in ca=*) ca=${instance#ca=} && continue ;; *=*) nginx_twin "$folder/twins" "${instance%%=*}" "${instance#*=}" && continue ;; esac
    upstream+="server 127.0.0.1:${instance%:*} max_fails=0; "
    grpc_upstream+="server 127.0.0.1:${instance#*:} max_fails=0; "
  done
  sed -e "s|\${NGINX_LISTEN}|$listen|" -e "s|\${NGINX_UPSTREAM}|$upstream|" -e "s|\${NGINX_FOLDER}|$folder|" \
    -e "s|\${NGINX_GRPC_LISTEN}|$grpc_listen|" -e "s|\${NGINX_GRPC_UPSTREAM}|$grpc_upstream|" \
    -e "s|\${NGINX_API_TLS}|${ca:+s}|" -e "s|\${NGINX_API_CA}|$ca|" \
    -e "s|\${NGINX_ACCESS_LOG}|$logs/nginx-access.log|" -e "s|\${NGINX_ERROR_LOG}|$logs/nginx-error.log|" \
    "$ROOT/docker/nginx/nginx.conf.template" >"$folder/nginx.conf"
}

# nginx_twin FOLDER TWIN PORT : writes the twin's two files. The header tells the live page which twins there are.
nginx_twin() {
  printf '%s\n' "upstream twin_$2 {" "    zone twin_$2 64k;" "    server 127.0.0.1:$3 max_fails=0;" '    keepalive 128;' \
    '    keepalive_timeout 20s;' '    keepalive_requests 100000;' '}' >"$1/$2-upstream.conf"
  printf '%s\n' "add_header Tbd-Twins $2;" "location /twins/$2/ {" '    proxy_pass_request_headers on;' \
    '    proxy_set_header Connection "";' "    proxy_pass http://twin_$2/;" '}' >"$1/$2-location.conf"
}

# nginx_start with nginx_render's arguments: starts nginx, or moves a running one to these instances.
# FOLDER holds its configuration and temporary files. nginx's workers, which for root run as another user,
# must be able to reach it.
nginx_start() {
  local folder=$1 logs=$4 nginx
  mkdir -p "$folder" "$logs"
  nginx_render "$@"
  nginx=(nginx -e "$logs/nginx-error.log" -c "$folder/nginx.conf" -p "$folder")
  ((EUID != 0)) || nginx+=(-g "user nobody $(id -gn nobody);")
  if running "$folder/nginx.pid"; then "${nginx[@]}" -s reload; else "${nginx[@]}" 9>&-; fi
}

# -------------------------------------------------------------------------- PgBouncer, Prometheus, OpenTelemetry collector

# daemon FOLDER NAME PORT COMMAND... : starts the command with its log in FOLDER/NAME.log; returns once it
# listens on PORT. FOLDER must occur in the command.
daemon() {
  local folder=$1 name=$2 port=$3
  shift 3
  mkdir -p "$folder"
  setsid "$@" </dev/null >>"$folder/$name.log" 2>&1 9>&- &
  record $! "$folder/$name.pid"
  disown
  wait_until 30 "$name" daemon_settled "$folder/$name.pid" "$port" || true
  port_in_use "$port" || { tail -n 20 "$folder/$name.log" >&2 && return 1; }
}
daemon_settled() { port_in_use "$2" || ! running "$1"; }

# pgbouncer_start FOLDER PORT POSTGRES-PORT SETTING=VALUE... : in front of a PostgreSQL on this machine, as the role tbd.
pgbouncer_start() {
  local folder=$1 port=$2 postgres=$3 user=()
  mkdir -p "$folder"
  {
    printf '%s\n' '[databases]' "* = host=127.0.0.1 port=$postgres user=tbd password=secret" '[pgbouncer]' \
      listen_addr=127.0.0.1 "listen_port=$port" unix_socket_dir= auth_type=any
    printf '%s\n' "${@:4}"
  } >"$folder/pgbouncer.ini"
  ((EUID != 0)) || user=(-u "$POSTGRES_USER") # it refuses to run as root
  daemon "$folder" pgbouncer "$port" pgbouncer "${user[@]}" "$folder/pgbouncer.ini"
}

# prometheus_start FOLDER PORT : with the caller's FOLDER/prometheus.yml.
prometheus_start() {
  daemon "$1" prometheus "$2" prometheus --config.file="$1/prometheus.yml" --storage.tsdb.path="$1/data" \
    --web.listen-address="127.0.0.1:$2" --log.level=warn
  # It listens before it has loaded its data.
  wait_until 30 "Prometheus to be ready" curl --silent --fail --output /dev/null "http://127.0.0.1:$2/-/ready"
}

# collector_start FOLDER HTTP-PORT GRPC-PORT SPANS-PORT PROGRAMS-PORT SETTINGS... : the collector of docker-compose.yml with
# other addresses and settings, and a file in Jaeger's place. Metrics from spans are on SPANS-PORT, the programs' own on
# PROGRAMS-PORT, and the spans go to FOLDER/spans.json, one line per batch.
collector_start() {
  local setting settings=()
  for setting in "${@:6}"; do settings+=(--set "$setting"); done
  daemon "$1" collector "$2" "$COLLECTOR" --config "$ROOT/docker/otel-collector/config.yaml" \
    --set "receivers.otlp.protocols.http.endpoint=127.0.0.1:$2" \
    --set "receivers.otlp.protocols.grpc.endpoint=127.0.0.1:$3" \
    --set "exporters.prometheus/spans.endpoint=127.0.0.1:$4" \
    --set "exporters.prometheus/programs.endpoint=127.0.0.1:$5" --set "exporters.file.path=$1/spans.json" \
    --set "service.pipelines.traces.exporters=[file, spanmetrics]" \
    --set "service.telemetry.metrics.readers=[]" --set service.telemetry.metrics.level=none "${settings[@]}"
}

# ------------------------------------------------------------------------------------------------------ Measurements

# measured_folder NAME : sets `folder`, which clean_up_measured deletes with its servers. On a real file system: the cost of a commit is
# the disk's.
measured_folder() {
  # A connection takes up to two descriptors of a server, and one of the load generator. Thousands exceed
  # the default limit of many machines.
  ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
  mkdir -p "$ROOT/.local"
  folder=$(mktemp -d "$ROOT/.local/$1.XXXXXX")
  chmod 755 "$ROOT/.local" "$folder"
}
clean_up_measured() {
  stop_servers_below "$folder"
  rm -rf "$folder"
}

# Starts PostgreSQL, whose commits are durable, and Kafka in `folder`; sets `postgres` and `kafka`, their ports.
measured_servers() {
  postgres=$(free_port) kafka=$(free_port)
  postgres_create "$folder/postgres" SUPERUSER
  postgres_start "$folder/postgres" "$postgres" fsync=on synchronous_commit=on full_page_writes=on \
    max_connections=300 shared_buffers=256MB max_wal_size=2GB
  # An optional second listener, for clients that connect only through the proxy on BENCH_PROXY_PORT.
  local listeners=() controller
  controller=$(free_port)
  if [[ -n ${BENCH_PROXY_PORT:-} ]]; then
    BENCH_KAFKA_SLOW_PORT=$(free_port)
    export BENCH_KAFKA_SLOW_PORT
    listeners=("listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SLOW:PLAINTEXT,CONTROLLER:PLAINTEXT"
      "listeners=SLOW://127.0.0.1:$BENCH_KAFKA_SLOW_PORT,PLAINTEXT://127.0.0.1:$kafka,CONTROLLER://127.0.0.1:$controller"
      "advertised.listeners=SLOW://127.0.0.1:$BENCH_PROXY_PORT,PLAINTEXT://127.0.0.1:$kafka")
  fi
  kafka_create "$folder/kafka" "$kafka" "$controller" "${listeners[@]}"
  kafka_start "$folder/kafka" -Xmx512m
}

# measured_environment POSTGRES-PORT KAFKA-PORT : exports the environment of loadtest/bench and loadtest/labs, and of the
# programs that they start.
measured_environment() {
  export DB_HOST=127.0.0.1 DB_PORT=$1 DB_USER=tbd DB_PASSWORD=secret DB_NAME=${DB_NAME:-tbd}
  export PGHOST=$DB_HOST PGPORT=$DB_PORT PGUSER=$DB_USER PGPASSWORD=$DB_PASSWORD PGDATABASE=$DB_NAME
  export KAFKA_BROKERS=127.0.0.1:$2 API_HOST=127.0.0.1 OTEL_EXPORTER_OTLP_ENDPOINT=${OTEL_EXPORTER_OTLP_ENDPOINT-}
  BENCH_STATE=$folder BENCH_API_PORT=$(free_port) BENCH_WORKER_PORT=$(free_port)
  export BENCH_STATE BENCH_API_PORT BENCH_WORKER_PORT
}

# Kills the servers that a test has left below a folder; their data is not needed again.
stop_servers_below() {
  local own
  for own in "$1"/*/; do
    stop_pid "${own}data/postmaster.pid" QUIT 10
    stop_pid "${own}kafka.pid" KILL 10
    stop_pid "${own}nginx.pid" TERM 10
    stop_pid "${own}pgbouncer.pid" KILL 10
    stop_pid "${own}prometheus.pid" KILL 10
    stop_pid "${own}collector.pid" KILL 10
  done
}
