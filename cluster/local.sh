#!/usr/bin/env bash
# Starts a Ray cluster of several nodes on this machine for experiments: each node has its own raylet and its own loopback address.
#   cluster/local.sh start [NODES [CPUS_OF_EACH [CPUS_OF_HEAD]]]    start 3 nodes of 1 CPU; print the variables to export
#   cluster/local.sh status                          print each node, its process and whether it runs
#   cluster/local.sh kill NODE                       end a node at once, as a power cut would (node 0 is the head)
#   cluster/local.sh restart NODE                    start an ended node again, with its previous addresses
#   cluster/local.sh stop                            end the processes of these nodes, by id
# MEDRAY_LOCAL names the folder of token, process ids and Ray's session (default /tmp/medray-local-UID; paths of sockets must be short),
# MEDRAY_RAY the `ray` command (default .venv/bin/ray, else that on the PATH), MEDRAY_LOCAL_NET the first three bytes of the addresses.
set -euo pipefail
umask 077

folder=${MEDRAY_LOCAL:-/tmp/medray-local-$(id -u)}
net=${MEDRAY_LOCAL_NET:-127.0.77}  # Linux responds on all of 127.0.0.0/8, so each node can have an address of its own
root=$(cd "$(dirname "$0")/.." && pwd)
ray=${MEDRAY_RAY:-}
if [ -z "$ray" ]; then
  ray=$root/.venv/bin/ray
  [ -x "$ray" ] || ray=$(command -v ray) || { echo "local.sh: no ray command in .venv or on the PATH; name one with MEDRAY_RAY" >&2; exit 1; }
fi
PATH=$(dirname "$ray"):$PATH  # jobs then run the interpreter that has medray
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0 RAY_DISABLE_IMPORT_WARNING=1
unset RAY_ADDRESS

free_ports() { # free_ports NUMBER
  python3 -c 'import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))' "$1"
}

node() { # node NUMBER CPUS OPTION...: start a node with a folder of its own, and wait until it runs
  local number=$1 cpus=$2 log=$folder/node-$1.log deadline=$((SECONDS + 300))
  printf '%s\n' "$@" >"$folder/node-$1.options"
  shift 2
  setsid "$ray" start --block --node-ip-address "$net.$((number + 1))" --num-cpus "$cpus" --num-gpus 0 --object-store-memory 100000000 \
    --min-worker-port 0 --max-worker-port 0 --disable-usage-stats --temp-dir "$folder/ray/$number" "$@" >"$log" 2>&1 </dev/null &
  echo $! >"$folder/node-$number.pid"
  until grep -qs "Ray runtime started" "$log"; do
    if [ $SECONDS -ge $deadline ] || ! alive $!; then
      tail -3 "$log" >&2
      echo "local.sh: node $number did not start; read $log" >&2
      return 1
    fi
    sleep 0.2
  done
}

own_folder() { # another user may have created this folder with process ids in it, or a link
  mkdir -p "$(dirname "$folder")"
  mkdir "$folder" 2>/dev/null || true
  if [ -z "$(find "$folder" -maxdepth 0 -type d -user "$(id -u)" ! -perm /022)" ]; then
    echo "local.sh: $folder: is not your own folder, or other users may write to it; name another folder with MEDRAY_LOCAL" >&2
    exit 1
  fi
  chmod 700 "$folder"
}

alive() { ps -o stat= -p "$1" 2>/dev/null | grep -qv "^Z"; }

start() {
  local nodes=${1:-3} cpus=${2:-1} number address ports
  local of_head=${3:-$cpus}
  if compgen -G "$folder/node-*.pid" >/dev/null; then
    echo "local.sh: $folder: has a cluster already; end it with cluster/local.sh stop" >&2
    exit 1
  fi
  python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$folder/token"
  read -ra ports < <(free_ports $((3 + 3 * nodes)))
  address=$net.1:${ports[0]}
  node 0 "$of_head" --head --port "${ports[0]}" --dashboard-host "$net.1" --dashboard-port "${ports[1]}" --ray-client-server-port "${ports[2]}" \
    --dashboard-agent-listen-port "${ports[3]}" --dashboard-agent-grpc-port "${ports[4]}" --metrics-export-port "${ports[5]}" || fail
  for ((number = 1; number < nodes; number++)); do
    node "$number" "$cpus" --address "$address" --dashboard-agent-listen-port "${ports[3 + 3 * number]}" \
      --dashboard-agent-grpc-port "${ports[4 + 3 * number]}" --metrics-export-port "${ports[5 + 3 * number]}" || fail
  done
  {
    echo "export RAY_ADDRESS=$address  # medray study, medray serve"
    echo "export RAY_API_SERVER_ADDRESS=http://$net.1:${ports[1]}  # medray submit, ray job, the dashboard"
    echo "export RAY_DASHBOARD_ADDRESS=http://$net.1:${ports[1]}  # serve deploy, serve status"
    echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token"
  } | tee "$folder/env"
}

fail() { stop && exit 1; }

restart() {
  local options
  if alive "$(<"$folder/node-$1.pid")"; then
    echo "local.sh: node $1 still runs; end it with cluster/local.sh kill $1" >&2
    exit 1
  fi
  rm -f "$folder/ray/$1/ray_current_cluster"  # with this file, a head mistakes processes of other nodes for its own
  mapfile -t options <"$folder/node-$1.options"
  node "${options[@]}"
}

each() { # each FUNCTION: call it with number and process id of every node
  local file number
  for file in "$folder"/node-*.pid; do
    [ -e "$file" ] || continue
    number=${file##*/node-}
    "$1" "${number%.pid}" "$(<"$file")"
  done
}

show() { if alive "$2"; then echo "node $1 $net.$(($1 + 1)) process $2 runs"; else echo "node $1 $net.$(($1 + 1)) process $2 has ended"; fi; }

terminate() { kill -TERM -- "-$2" 2>/dev/null || true; }

finish() { # kill nodes that have not ended; Ray would wait half a minute for work to move to other nodes
  for _ in {1..15}; do alive "$2" || break; sleep 0.2; done
  kill -KILL -- "-$2" 2>/dev/null || true
  rm -f "$folder/node-$1.pid"
}

stop() {
  each terminate
  each finish
  rm -rf "$folder/ray" "$folder/token" "$folder/env" "$folder"/node-*.options
}

case ${1:-} in start | status | kill | restart | stop) own_folder ;; esac
case ${1:-} in
start) shift && start "$@" ;;
status) each show ;;
kill) kill -KILL -- "-$(<"$folder/node-${2:?which node}.pid")" ;;
restart) restart "${2:?which node}" ;;
stop) stop ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
