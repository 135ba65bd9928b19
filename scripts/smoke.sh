# shellcheck shell=bash
# What compose-test and k8s-test share: verdicts on commands, and orders. Source it after lib.sh. BASE_URL is the edge's, and
# GRPC_ADDRESS its port for gRPC.

folder=$(mktemp -d "${TMPDIR:-/tmp}/tbd-smoke.XXXXXX")
: >"$folder/verdicts"
: >"$folder/accepted" # the ids of all orders that `during` saw accepted

# check WHAT COMMAND... : the verdict on a command. A failure does not end the run. `set -e` is off in the command.
check() {
  local what=$1 began=$SECONDS verdict=ok
  shift
  if ! "$@" >"$folder/output" 2>&1 </dev/null; then
    verdict=FAILED
    tail -n 15 "$folder/output" | sed 's/^/    /' >&2
  fi
  printf '%-6s %4d s  %s\n' "$verdict" $((SECONDS - began)) "$what" | tee -a "$folder/verdicts"
  [[ ! -e $folder/note ]] || sed 's/^/               /' "$folder/note"
  rm -f "$folder/note"
}

# verdict : the sum of all; fails after a failure
verdict() {
  printf '\n%s of %s are ok\n' "$(grep -c ^ok "$folder/verdicts")" "$(grep -c '' "$folder/verdicts")"
  ! grep ^FAILED "$folder/verdicts"
}

# documented PAGE BEGINNING : runs the command of a page that begins so, at the ports of this project
documented() {
  local command
  command=$(awk -v begin="$2" 'index($0, begin) == 1 { while (sub(/\\$/, "")) { getline rest; $0 = $0 rest } print; exit }' "$ROOT/$1")
  [[ -n $command ]] || die "$1 has no command that begins with $2"
  command=$(sed -e "s/localhost:50051/$GRPC_ADDRESS/" -e "s/localhost:9090/127.0.0.1:$PROMETHEUS_PORT/" \
    -e "s/localhost:16686/127.0.0.1:$JAEGER_PORT/" -e 's/docker compose exec/& --no-TTY/' <<<"$command")
  PATH=$PATH:$CACHE/bin bash -o pipefail -c "$command"
}

# fails COMMAND... : whether it fails
fails() { ! "$@"; }

# post AMOUNT : posts an order. Its answer's code is then in `code`, the seconds that it took in `seconds`, and its id in `id`.
post() {
  local answer body
  answer=$(curl --silent --max-time 40 --write-out '\n%{http_code} %{time_total}' "$BASE_URL/v1/orders" \
    --header 'Content-Type: application/json' --header "Idempotency-Key: $(cat /proc/sys/kernel/random/uuid)" \
    --data "{\"customer_email\":\"a@b.com\",\"amount_cents\":$1}") || true
  read -r code seconds <<<"${answer##*$'\n'}"
  body=${answer%$'\n'*}
  id=$(sed -n 's/.*"id":"\([^"]*\)".*/\1/p' <<<"$body")
  [[ $code == 202 && -n $id ]]
}

get() { curl --silent --fail --max-time 10 "$BASE_URL$1"; }
has_status() { [[ $(get "/v1/orders/$1") =~ \"status\":\"($2)\" ]]; }

# order AMOUNT STATUS : an order that ends so
order() {
  wait_until 120 'a 202' post "$1" || { printf 'the last answer is %s\n' "$code" && return 1; }
  wait_until 90 "$2" has_status "$id" "$2"
}

# saga AMOUNT STATUS STEP : an order ends so, and its saga has the step
saga() {
  order "$1" "$2" && get "/v1/orders/$id/saga" | tee "$folder/saga" && grep -q "\"$3\"" "$folder/saga"
}

# grpc METHOD [OPTION...] : a call through the edge
grpc() { "$CACHE/bin/grpcurl" -plaintext -max-time 20 "${@:2}" "$GRPC_ADDRESS" "$1"; }

# grpc_order : an order that is accepted by gRPC, and completed
grpc_order() {
  grpc tbd.orders.v1.OrderService/CreateOrder -H "idempotency-key: $(cat /proc/sys/kernel/random/uuid)" \
    -d '{"customer_email":"a@b.com","amount_cents":1299}' | tee "$folder/grpc" || return 1
  id=$(sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' "$folder/grpc")
  [[ -n $id ]] && wait_until 90 completed has_status "$id" completed
}

# refuses CODE : a POST gets that answer
refuses() { ! post 1299 && [[ $code == "$1" ]]; }

# during POSTS READS COMMAND... : orders and reads, one after another, while the command runs. Each answer has one of these codes
# (patterns), and each accepted order is completed in the end.
during() {
  local posts=$1 reads=$2 flow result=0 lost=0
  shift 2
  rm -f "$folder/stop" && : >"$folder/flow"
  while [[ ! -e $folder/stop ]]; do
    post 1299 || true
    printf 'POST %s %s %s\n' "$code" "$seconds" "$id"
    curl --silent --max-time 40 --output /dev/null --write-out 'GET %{http_code} %{time_total}\n' "$BASE_URL/v1/orders?page_size=1" || true
    sleep 0.1
  done >"$folder/flow" &
  flow=$!
  "$@" || result=$?
  touch "$folder/stop"
  wait "$flow"
  while read -r id; do
    printf '%s\n' "$id" >>"$folder/accepted"
    wait_until 90 "$id" has_status "$id" completed || lost=$((lost + 1))
  done < <(awk '/^POST 202/ { print $4 }' "$folder/flow")
  awk -v lost="$lost" '{ count[$1 " " $2]++; if ($3 > slowest[$1]) slowest[$1] = $3 }
    END { for (answer in count) printf "%d x %s, ", count[answer], answer
      printf "slowest %.2f s and %.2f s, lost %d\n", slowest["POST"], slowest["GET"], lost }' "$folder/flow" | tee "$folder/note"
  ((result == 0 && lost == 0)) && grep -q '^POST 202' "$folder/flow" && ! grep -qvE "^(POST ($posts)|GET ($reads)) " "$folder/flow"
}

# none_lost : each order that was accepted during a flow is still there, and completed
none_lost() {
  local lost=0
  while read -r id; do
    wait_until 30 "$id" has_status "$id" completed || lost=$((lost + 1))
  done <"$folder/accepted"
  printf '%d orders, lost %d\n' "$(grep -c '' "$folder/accepted")" "$lost" | tee "$folder/note"
  [[ -s $folder/accepted ]] && ((lost == 0))
}
