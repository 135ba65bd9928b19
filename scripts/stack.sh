# shellcheck shell=bash disable=SC2034
# What up, down, status, logs and demo know of a stack. Source it after lib.sh.
#
# A stack is a folder: STATE_DIR, with each server's data, run/NAME.pid of each process, run/NAME.spec (what it was started
# with, so that a change is noticed), and logs/.

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

# nginx's workers, which for root are another user, must reach this folder.
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
    nginx) stop_pid "$(pid_file nginx)" TERM 10 ;;
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
