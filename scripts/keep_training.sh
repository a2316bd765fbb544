#!/usr/bin/env bash
# Runs a training command until it is done: starts it again when its exit code says that this goes on (docs/pods.md).
#
#   bash scripts/keep_training.sh .venv/bin/python -m walt_t5x.train --gin_file=... --gin.MODEL_DIR=\"...\"
#
# 0 ends it well; 65 (not finite) and 1, 2 (errors) end it as they are; 70 (hung), 75 (preempted) and deaths by a signal
# (128 + n) start it again, after a pause that doubles while starts fail within RETRY_AFTER seconds. A SIGTERM to this
# script goes to the command and ends both.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/allocator.sh" || exit

pause=${PAUSE:-5} retry_after=${RETRY_AFTER:-300} wait=$pause
stopping=""
trap 'stopping=1; [ -n "${child:-}" ] && kill -TERM "$child" 2>/dev/null' TERM INT

while :; do
  started=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  code=$?
  # A trapped signal ends `wait` early; the command still saves, so wait for it in earnest.
  while [ -n "$stopping" ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if [ "$code" -eq 0 ] || [ -n "$stopping" ]; then
    exit "$code"
  fi
  case $code in
    70 | 75) ;;
    *) if [ "$code" -lt 128 ]; then
         echo "keep_training: exit code $code will not get better by itself; see the log above and docs/pods.md" >&2
         exit "$code"
       fi ;;
  esac
  if [ $((SECONDS - started)) -ge "$retry_after" ]; then wait=$pause; fi
  echo "keep_training: exit code $code after $((SECONDS - started)) s; again in $wait s" >&2
  sleep "$wait"
  wait=$((wait * 2 > 600 ? 600 : wait * 2))
done
