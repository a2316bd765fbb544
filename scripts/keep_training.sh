#!/usr/bin/env bash
# Runs a training command until it is done: restarts it if its exit code says that it can resume (docs/pods.md).
#
#   bash scripts/keep_training.sh .venv/bin/python -m walt_t5x.train --gin_file=... --gin.MODEL_DIR=\"...\"
#
# Exit code 0 is success; 65 (not finite), 130 (Ctrl-C) and 1, 2 (errors) are returned; after 70 (hung), 75 (preempted)
# and other signals (128 + n) the command is restarted, after a pause that doubles while it fails within RETRY_AFTER
# seconds. A SIGTERM to this script is passed to the command and ends both.
set -uo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash scripts/keep_training.sh COMMAND ARGUMENTS, such as .venv/bin/python -m walt_t5x.train --gin_file=..." >&2
  exit 2
fi
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
  # A trapped signal ends `wait` early, but the command is still saving: wait until it exits.
  while [ -n "$stopping" ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if [ "$code" -eq 0 ] || [ -n "$stopping" ]; then
    exit "$code"
  fi
  case $code in
    70 | 75) ;;
    *) if [ "$code" -lt 128 ] || [ "$code" -eq 130 ]; then
         echo "keep_training: exit code $code is not restarted; see the log above and docs/pods.md" >&2
         exit "$code"
       fi ;;
  esac
  if [ $((SECONDS - started)) -ge "$retry_after" ]; then wait=$pause; fi
  echo "keep_training: exit code $code after $((SECONDS - started)) s; again in $wait s" >&2
  sleep "$wait"
  wait=$((wait * 2 > 600 ? 600 : wait * 2))
done
