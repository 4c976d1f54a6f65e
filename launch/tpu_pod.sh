#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice.
#
#   launch/tpu_pod.sh create  --name N --zone Z --type v5litepod-16 --version v2-alpha-tpuv5-lite [--spot] [--queued]
#   launch/tpu_pod.sh install --name N --zone Z [--nfs HOST:/SHARE]
#   launch/tpu_pod.sh run     --name N --zone Z -- --config configs/fbp_cross_sensor.py --workdir /mnt/shared/runs/fbp
#   launch/tpu_pod.sh status | tail | stop | delete  --name N --zone Z
#
# create   create the slice; --queued requests a queued resource of the same name, --spot a preemptible one
# install  install this folder's last commit and its dependencies on every worker; --nfs mounts HOST:/SHARE at
#          /mnt/shared
# run      run `spectralmoe train` on every worker, detached; the same command resumes
# status   print the slice's state and the last line of every worker's log
# tail     follow the log of worker 0 (--worker N for another)
# stop     send SIGTERM to the training on all workers, which saves a checkpoint and exits
# delete   delete the slice (with --queued, its request too)
#
# Options may come from the environment: POD_NAME, POD_ZONE, POD_TYPE, POD_VERSION, POD_PROJECT, POD_NFS.
# Further options: --project P; --python python3.11, the Python to install with; --dry-run, print every command
# without running it.
set -euo pipefail

fail() { # one line: control characters of a value become ?
  local message="$*"
  printf 'error: tpu_pod.sh: %s\n' "${message//[[:cntrl:]]/?}" >&2
  exit 2
}

readonly actions="create install run status tail stop delete"
action=${1:-}
[[ $action && " $actions " == *" $action "* ]] || fail "'$action' is not an action: give one of $actions"
shift

name=${POD_NAME:-} zone=${POD_ZONE:-} type=${POD_TYPE:-} version=${POD_VERSION:-} project=${POD_PROJECT:-}
nfs=${POD_NFS:-} python=python3.11 worker=0 spot='' queued='' dry_run=''
while (($#)); do
  case $1 in
    --spot | --queued | --dry-run) option=${1#--} && printf -v "${option/-/_}" yes && shift ;;
    --name | --zone | --type | --version | --project | --nfs | --python | --worker)
      [[ ${2:-} && $2 != --* ]] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --) shift && break ;;
    *) fail "$1 is not an option; put the training's arguments after --" ;;
  esac
done
[[ $action == run || $# == 0 ]] || fail "$action takes nothing after --"

need() {
  local option missing=()
  for option in "$@"; do
    [[ ${!option} ]] || missing+=("--$option (or POD_$(tr '[:lower:]' '[:upper:]' <<<"$option"))")
  done
  ((${#missing[@]} == 0)) || fail "$action: missing ${missing[*]}"
}

need name zone
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name $name: give lower-case letters, digits and dashes"
[[ $zone =~ ^[a-z][-a-z0-9]*$ ]] || fail "--zone $zone: give lower-case letters, digits and dashes"
[[ ! $project || $project =~ ^[a-z][-a-z0-9.:]*$ ]] || fail "--project $project: give the identifier of a project"
[[ ! $type || $type =~ ^[A-Za-z0-9][-A-Za-z0-9._]*$ ]] || fail "--type $type: give letters, digits, dashes and dots"
[[ ! $version || $version =~ ^[A-Za-z0-9][-A-Za-z0-9._]*$ ]] || fail "--version $version: give letters, digits, dashes and dots"
[[ $worker =~ ^([[:digit:]]{1,5}|all)$ ]] || fail "--worker $worker: give a whole number, or all"
[[ ! $nfs || $nfs =~ ^[][A-Za-z0-9.:_][][A-Za-z0-9.:_-]*:/ && $nfs != *[[:cntrl:]]* ]] || fail "--nfs $nfs: give HOST:/SHARE"
[[ $python =~ ^python3\.(1[1-9]|[2-9][[:digit:]])$ ]] || fail "--python $python: give python3.11 or newer"
where=(--zone="$zone" ${project:+--project="$project"})

quoted() { # print a word in single quotes, which no shell looks into
  printf "'%s'" "${1//\'/\'\\\'\'}"
}

show() { # print words as they would be typed: a shell reads each as it is
  local word line=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word=$(quoted "$word")
    line+=("$word")
  done
  printf "%s\n" "${line[*]}"
}

do_it() {
  if [[ $dry_run ]]; then show "$@"; else "$@"; fi
}

on_workers() { # WORKER COMMAND
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

case $action in
  create)
    need type version
    if [[ $queued ]]; then
      do_it gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot}
    else
      do_it gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
        --accelerator-type="$type" --version="$version" ${spot:+--spot}
    fi
    ;;
  install)
    # a folder of our own: another user of this machine could have put a link at any name that is known before
    folder=${TMPDIR:-/tmp}/spectralmoe.XXXXXX
    if [[ ! $dry_run ]]; then
      folder=$(mktemp -d -- "$folder" 2>/dev/null) || fail "TMPDIR = ${TMPDIR:-/tmp}: no temporary folder can be made there"
      trap 'rm -rf -- "$folder"' EXIT
    fi
    archive=$folder/spectralmoe.tar.gz
    do_it git -C "$(dirname -- "${BASH_SOURCE[0]}")/.." archive --format=tar.gz --output="$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$name:spectralmoe.tar.gz" "${where[@]}" --worker=all
    packages="$python-venv libexpat1 ${nfs:+nfs-common}"
    steps="sudo apt-get update -q && sudo apt-get install -q -y ${packages% }"
    steps+=" && rm -rf spectralmoe && mkdir spectralmoe && tar -xzf spectralmoe.tar.gz -C spectralmoe"
    steps+=" && $python -m venv venv && venv/bin/pip install -q './spectralmoe[tpu]'"
    if [[ $nfs ]]; then
      steps+=" && sudo mkdir -p /mnt/shared"
      steps+=" && { mountpoint -q /mnt/shared || sudo mount -t nfs $(quoted "$nfs") /mnt/shared; }"
    fi
    on_workers all "$steps"
    ;;
  run)
    given=" $* "
    [[ $given == *" --config"[=\ ]* ]] || fail "run: give the training's --config after --"
    [[ $given == *" --workdir"[=\ ]* ]] || fail "run: give the training's --workdir after --, on storage that all workers share"
    # local.sh restarts the training after a crash; the workers find each other through the TPU's metadata.
    steps="cd spectralmoe && if kill -0 \$(cat ../train.pid) 2>/dev/null; then echo 'already running: stop it first'; exit 1; fi"
    steps+=" && export PATH=\$HOME/venv/bin:\$PATH"
    steps+=" && { nohup setsid launch/local.sh $(show "$@") >>../train.log 2>&1 </dev/null & echo \$! >../train.pid; }"
    on_workers all "$steps"
    ;;
  status)
    if [[ $queued ]]; then
      do_it gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
    fi
    do_it gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state,health)'
    # shellcheck disable=SC2016 # expanded by the worker
    on_workers all 'kill -0 $(cat train.pid) 2>/dev/null && state=training || state=idle; echo "$(hostname) $state: $(tail -n 1 train.log)"'
    ;;
  tail) on_workers "$worker" 'tail -n 100 -F train.log' ;;
  stop)
    # shellcheck disable=SC2016 # expanded by the worker
    on_workers all 'kill -TERM $(cat train.pid)'
    ;;
  delete)
    if [[ $queued ]]; then
      do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    else
      do_it gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
    fi
    ;;
esac
