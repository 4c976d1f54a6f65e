#!/usr/bin/env bash
# Trains on this machine and restarts automatically after a crash.
#
#   [PROCESSES=N] launch/local.sh --config configs/dubai.py --workdir runs/dubai [--config.train.steps=...]
#
# One process uses all accelerators that JAX finds. PROCESSES=N starts N processes that share the GPUs evenly, or
# the CPU if there are none. Every start resumes from the last complete checkpoint. The script exits on statuses for
# which a restart is useless (0 done or stopped on request, 2 bad input, 126 and 127 no program, 130 interrupted).
#
#   RESTARTS          restarts after a crash (default 10)
#   WATCHDOG_SECONDS  restart a run that has had no heartbeat for this long (default 1800)
#   PORT              port on which the processes meet (default: a free one)
set -uo pipefail
set -m # signals reach the processes only through this script

asked=
trap 'asked=TERM' TERM HUP # HUP: the terminal is gone; without effect below nohup
trap 'asked=INT' INT
trap 'asked=QUIT' QUIT

fail() { # one line: control characters of a value become ?
  local message="$*"
  printf 'error: local.sh: %s\n' "${message//[[:cntrl:]]/?}" >&2
  exit 2
}

whole() { # NAME LEAST MOST: its value is a whole number in decimal; leading zeros are dropped
  [[ ${!1} =~ ^0*([[:digit:]]{1,9})$ ]] || fail "$1 = ${!1}: give a whole number"
  printf -v "$1" %d "$((10#${BASH_REMATCH[1]}))"
  ((${!1} >= $2)) || fail "$1 = ${!1}: give at least $2"
  ((${!1} <= $3)) || fail "$1 = ${!1}: give at most $3"
}

PROCESSES=${PROCESSES:-1}
RESTARTS=${RESTARTS:-10}
WATCHDOG_SECONDS=${WATCHDOG_SECONDS:-1800}
whole PROCESSES 1 1024
whole RESTARTS 0 999999999
whole WATCHDOG_SECONDS 1 999999999
[[ ! ${PORT:-} ]] || whole PORT 1 65535
command -v spectralmoe >/dev/null || fail "no command spectralmoe: activate the environment it is installed in"
watchdog=$(dirname -- "${BASH_SOURCE[0]}")/watchdog.sh

gpus=()
if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -ra listed <<<"$CUDA_VISIBLE_DEVICES"
  for gpu in "${listed[@]+"${listed[@]}"}"; do
    [[ $gpu == -* || $gpu == NoDevFiles ]] && break # hides this and all that follow
    gpus+=("$gpu")
  done
elif command -v nvidia-smi >/dev/null; then
  while read -r gpu; do gpus+=("$gpu"); done < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
share=$((${#gpus[@]} / PROCESSES))
((PROCESSES * share == ${#gpus[@]})) ||
  fail "PROCESSES = $PROCESSES cannot share ${#gpus[@]} GPUs evenly: choose a divisor, or hide some in CUDA_VISIBLE_DEVICES"

free_port() {
  local port
  for port in $(shuf -i 20000-29999 -n 50 2>/dev/null || echo 8476); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

start() { # INDEX
  if ((PROCESSES > 1)); then
    export SPECTRALMOE_COORDINATOR=127.0.0.1:$port SPECTRALMOE_PROCESSES=$PROCESSES SPECTRALMOE_PROCESS_ID=$1
    if ((share)); then
      local mine="${gpus[*]:$1*share:share}"
      export CUDA_VISIBLE_DEVICES=${mine// /,}
    fi
  fi
  shift
  exec "$watchdog" "$WATCHDOG_SECONDS" spectralmoe train "$@"
}

signal_all() { # SIGNAL
  local pid
  for pid in "${running[@]}"; do kill "-$1" "$pid" 2>/dev/null; done
}

# Runs all processes once. `status` becomes 0, or the status of the first process that failed. The others then fail
# as a consequence, so they are killed rather than asked to stop.
run_once() {
  local i still pid passed_on=
  port=${PORT:-$(free_port)}
  running=()
  status=0
  for ((i = 0; i < PROCESSES; i++)); do
    start "$i" "$@" &
    running+=("$!")
  done
  while ((${#running[@]})); do
    if [[ $asked && ! $passed_on ]]; then
      signal_all "$asked"
      passed_on=yes
    fi
    still=()
    for pid in "${running[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        still+=("$pid")
      else
        wait "$pid" 2>/dev/null || status=$((status ? status : $?))
      fi
    done
    running=("${still[@]+"${still[@]}"}")
    # All processes report bad input, and an interruption ends all of them: give them time to exit.
    [[ $status == 0 || $status == 2 || $passed_on ]] || signal_all USR1
    sleep 0.2
  done
}

for ((attempt = 0; ; attempt++)); do
  [[ $asked == TERM ]] && exit 0
  [[ $asked == INT ]] && exit 130
  [[ $asked == QUIT ]] && exit 131
  run_once "$@"
  # a process that SIGTERM ended had not begun to listen: nothing is lost
  [[ $asked == TERM && $status == 143 ]] && exit 0
  case $status in
    0 | 2 | 126 | 127 | 130) exit "$status" ;;
  esac
  [[ $asked ]] && exit "$status"
  if ((attempt >= RESTARTS)); then
    echo "training ended with status $status after $RESTARTS restarts" >&2
    exit "$status"
  fi
  echo "training ended with status $status; restart $((attempt + 1)) of $RESTARTS" >&2
  sleep "$((attempt < 6 ? 2 ** attempt : 60))" &
  wait "$!" # which a signal ends
  kill "$!" 2>/dev/null
done
