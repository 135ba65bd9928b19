# shellcheck shell=bash disable=SC2034
# Functions about a stack, for up, down, status, logs and demo. Source it after lib.sh.
#
# A stack is a folder, STATE_DIR, with each server's data, run/NAME.pid of each process, run/NAME.spec (its
# address and a fingerprint of its settings, to detect a change), and logs/.

STATE=$(realpath --canonicalize-missing "${STATE_DIR:-$ROOT/.local}")

# Names of the running instances of api or worker, in order: api-1 api-2 ...
instances() {
  local file
  for file in "$STATE/run/$1"-*.pid; do
    [[ ! -e $file ]] || basename "$file" .pid
  done | sort --version-sort
}

address_of() { sed -n 's/^address=//p' "$STATE/run/$1.spec" 2>/dev/null || true; }
pid_file() {
  case $1 in
    postgres) printf '%s\n' "$STATE/postgres/data/postmaster.pid" ;;
    kafka) printf '%s\n' "$STATE/kafka/kafka.pid" ;;
    nginx) printf '%s\n' "$(nginx_folder)/nginx.pid" ;;
    *) printf '%s\n' "$STATE/run/$1.pid" ;;
  esac
}

# instance_environment api|worker PORT : exports the environment of an instance of this stack. The servers'
# ports are the caller's db_port and kafka_port.
# shellcheck disable=SC2154
instance_environment() {
  unset API WORKERS
  export DB_HOST=127.0.0.1 DB_PORT=$db_port DB_USER=tbd DB_PASSWORD=secret DB_NAME=tbd
  export KAFKA_BROKERS=127.0.0.1:$kafka_port
  # No collector unless the caller names one.
  export OTEL_EXPORTER_OTLP_ENDPOINT=${OTEL_EXPORTER_OTLP_ENDPOINT-}
  if [[ $1 == api ]]; then export API_HOST=${API_HOST:-127.0.0.1} API_PORT=$2; else export WORKER_PORT=$2; fi
}

# settings api|worker PORT : a fingerprint of the program, of every variable in its --help, and of the files
# that these name. A difference requires a restart. It is a hash, because some values are secrets.
settings() (
  instance_environment "$1" "$2"
  cd "$ROOT" || return # as for the instances
  variables=$("$TBD_BIN/tbd-$1" --help | sed -n 's/^\([A-Z][A-Z0-9_]*\)  .*/\1/p')
  [[ $variables == *_PORT* ]] || die "tbd-$1 --help prints no table of variables"
  {
    for name in $variables RUST_BACKTRACE; do
      value=${!name-unset}
      printf '%s=%s\n' "$name" "$value"
      case $name in
        *_FILE | *_DIR) [[ ! -e $value ]] || find -L "$value" -type f -exec sha256sum {} + | sort ;;
      esac
    done
    sha256sum <"$TBD_BIN/tbd-$1"
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
