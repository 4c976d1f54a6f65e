#!/usr/bin/env bash
# Trains on this machine and goes on by itself after a crash.
#
#   launch/local.sh --config configs/dubai.py --workdir runs/dubai [--config.train.steps=...]
#
# Every start resumes from the last complete checkpoint. Statuses that another start cannot
# mend (0 done, 2 bad input, 130 interrupted) end it. RESTARTS (default 10) bounds the starts.
set -euo pipefail

restarts=${RESTARTS:-10}
for ((attempt = 0; attempt <= restarts; attempt++)); do
  status=0
  spectralmoe train "$@" || status=$?
  case $status in
    0 | 2 | 130) exit "$status" ;;
  esac
  echo "training ended with status $status; start $((attempt + 1)) of $restarts follows" >&2
  sleep "$((attempt < 6 ? 2 ** attempt : 60))"
done
exit "$status"
