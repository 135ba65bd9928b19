# shellcheck shell=bash disable=SC2034
# Functions about a stack, for up, down, status, logs and demo. Source it after lib.sh.
#
# A stack is a folder, STATE_DIR, with each server's data, run/NAME.pid of each process, run/NAME.spec (its
# address and a fingerprint of its settings, to detect a change), and logs/.

STATE=$(realpath --canonicalize-missing "${STATE_DIR:-$ROOT/.local}")

# Names of the participants of sagas that have been started.
participants() {
  local name
  for name in inventory payments; do [[ ! -e $STATE/run/$name.spec ]] || printf '%s\n' "$name"; done
}

# Names of the twins' programs that have been started: async-api async-worker go-api go-worker.
twins() {
  local name
  for name in {async,go}-{api,worker}; do [[ ! -e $STATE/run/$name.spec ]] || printf '%s\n' "$name"; done
}

# Names of the running instances of api or worker, in order: api-1 api-2 ...
instances() {
  local file
  for file in "$STATE/run/$1"-*.pid; do
    [[ ! -e $file ]] || basename "$file" .pid
  done | sort --version-sort
}

grpc_address() { sed -n 's/^grpc=//p' "$STATE/run/nginx.spec" 2>/dev/null || true; }
address_of() { sed -n 's/^address=//p' "$STATE/run/$1.spec" 2>/dev/null || true; }
pid_file() {
  case $1 in
    postgres) printf '%s\n' "$STATE/postgres/data/postmaster.pid" ;;
    kafka) printf '%s\n' "$STATE/kafka/kafka.pid" ;;
    nginx) printf '%s\n' "$(nginx_folder)/nginx.pid" ;;
    *) printf '%s\n' "$STATE/run/$1.pid" ;;
  esac
}

# program_of api|worker|inventory|payments|async-api|async-worker|go-api|go-worker : the program's file
program_of() {
  case $1 in
    inventory | payments) printf '%s/tbd-participant\n' "$TBD_BIN" ;;
    *-*) printf '%s/%s/tbd-%s\n' "$TWINS_BIN" "${1%-*}" "${1#*-}" ;;
    *) printf '%s/tbd-%s\n' "$TBD_BIN" "$1" ;;
  esac
}

# instance_environment PROGRAM PORT [GRPC-PORT] : exports the environment of an instance of this stack; PROGRAM as for
# program_of. An api of tbd has a GRPC-PORT. A twin has a database, topics and a group of its own. The servers' ports are the
# caller's db_port, kafka_port and participant_grpc_port (inventory; payments has the next one).
# shellcheck disable=SC2154
instance_environment() {
  unset API WORKERS
  export DB_HOST=127.0.0.1 DB_PORT=$db_port DB_USER=tbd DB_PASSWORD=secret DB_NAME=tbd
  export KAFKA_BROKERS=127.0.0.1:$kafka_port
  # No collector unless the caller names one.
  export OTEL_EXPORTER_OTLP_ENDPOINT=${OTEL_EXPORTER_OTLP_ENDPOINT-}
  local inventory=$participant_grpc_port payments=$((participant_grpc_port + 1))
  case $1 in
    api) export API_HOST=${API_HOST:-127.0.0.1} API_PORT=$2 API_GRPC_PORT=$3 ;;
    inventory | payments) export PARTICIPANT=$1 PARTICIPANT_HOST=127.0.0.1 DB_NAME=$1 HTTP_PORT=$2 GRPC_PORT=${!1} ;;
    worker)
      export WORKER_PORT=$2 INVENTORY_ADDRESS=127.0.0.1:$inventory PAYMENTS_ADDRESS=127.0.0.1:$payments
      [[ -z ${SAGA:-} ]] || export WORKER_WORKFLOW=saga
      ;;
    *-*)
      local twin=${1%-*} topic
      export API_HOST=${API_HOST:-127.0.0.1} WORKER_HOST=${WORKER_HOST:-127.0.0.1} API_PORT=$2 WORKER_PORT=$2 API_GRPC_PORT=0
      export DB_NAME=${twin}_twin KAFKA_CONSUMER_GROUP=$twin-workers
      for topic in created processed failed dlq; do export "KAFKA_TOPIC_ORDER_${topic^^}=$twin.order.$topic"; done
      ;;
  esac
}

# settings PROGRAM PORT [GRPC-PORT] : a fingerprint of the program, of every variable in its --help (a twin's: of tbd's), and of
# the files that these name. A difference requires a restart. It is a hash, because some values are secrets.
settings() (
  instance_environment "$@"
  cd "$ROOT" || return # as for the instances
  variables=$("$(program_of "${1##*-}")" --help | sed -n 's/^\([A-Z][A-Z0-9_]*\)  .*/\1/p')
  [[ $variables == *_PORT* ]] || die "$(program_of "${1##*-}") --help prints no table of variables"
  {
    for name in $variables RUST_BACKTRACE TWIN_PIPELINE; do
      value=${!name-unset}
      printf '%s=%s\n' "$name" "$value"
      case $name in
        *_FILE | *_DIR) [[ ! -e $value ]] || find -L "$value" -type f -exec sha256sum {} + | sort ;;
      esac
    done
    sha256sum <"$(program_of "$1")"
  } | sha256sum
)

# nginx's workers, which for root run as another user, must be able to reach this folder.
nginx_folder() {
  if ((EUID == 0)); then
    printf '%s/nginx-%s\n' "$CACHE" "$(cksum <<<"$STATE" | cut -d ' ' -f 1)"
  else
    printf '%s\n' "$STATE/nginx"
  fi
}

stop_service() {
  case $1 in
    postgres) postgres_stop "$STATE/postgres" fast ;;
    kafka) kafka_stop "$STATE/kafka" ;;
    nginx) stop_pid "$(pid_file nginx)" QUIT 40 ;; # finishes requests in flight, which take an api 30 s at most
    *) stop_pid "$STATE/run/$1.pid" TERM 45 ;;
  esac
  rm -f "$STATE/run/$1.spec" "$STATE/run/$1.pid"
}

# stop_services NAME... : all at the same time
stop_services() {
  local name
  for name in "$@"; do stop_service "$name" & done
  wait
}

# One command at a time changes a stack.
lock_stack() {
  mkdir -p "$STATE/run" "$STATE/logs"
  exec 9>"$STATE/lock"
  flock --nonblock 9 || die "another make up or make down is at work in $STATE"
}
