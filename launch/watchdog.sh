#!/usr/bin/env bash
# Runs a training command and kills it once its heartbeat has stopped for SECONDS: a collective operation hangs
# forever if another process dies.
#
#   launch/watchdog.sh SECONDS spectralmoe train --config C --workdir DIR ...
#
# SECONDS must cover the phases without a heartbeat: start-up and the first compilation, an evaluation, a checkpoint.
# The script watches DIR/heartbeat/0.json, or the file HEARTBEAT, because one stuck process stops all others. Only a
# change of the file counts, so neither the hosts' clocks nor a file left by an earlier start matters.
#
# SIGTERM and SIGHUP (the end of the terminal) are passed on as SIGTERM; the training then has STOP_SECONDS (default 100)
# to save before it is killed.
# Exit status: that of the training; 124 if it was killed. After a SIGTERM, STOPPED_STATUS (default 0) is used instead of
# 0, for schedulers that take 0 to mean that nothing is left to do.
set -uo pipefail
set -m # the training gets its own process group, which can be killed as a whole and receives Ctrl-C

fail() { # one line: control characters of a value become ?
  local message="$*"
  printf 'error: watchdog.sh: %s\n' "${message//[[:cntrl:]]/?}" >&2
  exit 2
}

whole() { # NAME LEAST MOST: its value is a whole number in decimal; leading zeros are dropped
  [[ ${!1} =~ ^0*([[:digit:]]{1,9})$ ]] || fail "$1 = ${!1}: give a whole number"
  printf -v "$1" %d "$((10#${BASH_REMATCH[1]}))"
  ((${!1} >= $2)) || fail "$1 = ${!1}: give at least $2"
  ((${!1} <= $3)) || fail "$1 = ${!1}: give at most $3"
}

seconds=${1:-}
[[ $seconds =~ ^0*([1-9][[:digit:]]{0,8})$ ]] || fail "give SECONDS first, a whole number, not '$seconds'"
seconds=${BASH_REMATCH[1]}
shift
(($#)) || fail "give the command to run after SECONDS"
STOP_SECONDS=${STOP_SECONDS:-100}
STOPPED_STATUS=${STOPPED_STATUS:-0}
whole STOP_SECONDS 0 999999999
whole STOPPED_STATUS 0 255

workdir=
previous=
for argument in "$@"; do
  [[ $previous == --workdir ]] && workdir=$argument
  [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}
  previous=$argument
done
[[ $workdir ]] || fail "the command has no --workdir, so there is no heartbeat to watch"

asked=
trap 'asked=TERM' TERM HUP
trap 'asked=INT' INT
# from local.sh: another process is lost, so waiting is useless (a script's background jobs ignore SIGQUIT)
trap 'asked=KILL' QUIT USR1

ulimit -c 0
PYTHONFAULTHANDLER=1 "$@" &
training=$!
exec 3>&2 2>/dev/null # otherwise bash prints its own message about the killed job

kill_all() { # REASON
  killed=yes
  printf 'watchdog.sh: %s: killed\n' "${1//[[:cntrl:]]/?}" >&3
  kill -ABRT "$training" # the fault handler prints the stack of every thread
  sleep 1
  kill -KILL -- "-$training"
}

heartbeat=${HEARTBEAT:-$workdir/heartbeat/0.json}
last=$(head -c 1000 -- "$heartbeat")
changed=$SECONDS
checked=$SECONDS
stop_at=
killed=
while kill -0 "$training"; do
  if [[ $killed ]]; then
    : # a large process takes time to exit
  elif [[ $asked == KILL ]]; then
    killed=yes
    kill -KILL -- "-$training"
  elif [[ $asked && ! $stop_at ]]; then
    kill "-$asked" "$training"
    stop_at=$((SECONDS + STOP_SECONDS))
  elif [[ $stop_at ]] && ((SECONDS >= stop_at)); then
    kill_all "not stopped $STOP_SECONDS s after SIG$asked"
  elif ((SECONDS - checked >= (seconds < 40 ? 1 : 10))); then
    checked=$SECONDS
    beat=$(head -c 1000 -- "$heartbeat")
    if [[ $beat != "$last" ]]; then
      last=$beat
      changed=$SECONDS
    elif ((SECONDS - changed >= seconds)); then
      kill_all "no heartbeat in $heartbeat for $seconds s (last: ${last:-none})"
    fi
  fi
  sleep 0.2
done
wait "$training"
status=$?
[[ $killed ]] && exit 124
# a training that SIGTERM ended had not begun to listen: nothing is lost
[[ $stop_at && $asked == TERM && $status == 143 ]] && status=0
[[ $status == 0 && $stop_at ]] && exit "$STOPPED_STATUS"
exit "$status"
