#!/usr/bin/env bash
# Runs a training command until it is done: restarts it if its exit code says that it can resume (docs/pods.md).
#
#   bash scripts/keep_training.sh .venv/bin/python -m walt_t5x.train --gin_file=... --gin.MODEL_DIR=\"...\"
#
# Exit code 0 is success; 65 (not finite), 130 (Ctrl-C) and 1, 2 (errors) are returned; after 70 (hung), 75 (preempted)
# and other signals (128 + n) the command is restarted, after a pause that doubles while it fails within RETRY_AFTER
# seconds; after MAX_FAILURES such failures in a row it is not. SIGTERM, SIGINT or SIGHUP to this script become a SIGTERM
# to the command, and end both.
set -uo pipefail
if [ $# -eq 0 ]; then
  echo "usage: bash scripts/keep_training.sh COMMAND ARGUMENTS, such as .venv/bin/python -m walt_t5x.train --gin_file=..." >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/allocator.sh" || exit

pause=${PAUSE:-5} retry_after=${RETRY_AFTER:-300} max_failures=${MAX_FAILURES:-10} wait=$pause
failures=0 stopping=""
# `child` is the command or, between two of its runs, the pause.
trap 'stopping=1; [ -n "${child:-}" ] && kill -TERM "$child" 2>/dev/null' TERM INT HUP

while :; do
  started=$SECONDS
  "$@" &
  child=$!
  # A signal may have come before its process was known.
  [ -n "$stopping" ] && kill -TERM "$child" 2>/dev/null
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
  failures=$((failures + 1))
  if [ $((SECONDS - started)) -ge "$retry_after" ]; then wait=$pause failures=0; fi
  if [ "$failures" -ge "$max_failures" ]; then
    echo "keep_training: $failures times in a row the command ended within $retry_after s (RETRY_AFTER), the last time" \
      "with exit code $code; it is not started again (MAX_FAILURES); see the log above" >&2
    exit "$code"
  fi
  echo "keep_training: exit code $code after $((SECONDS - started)) s; again in $wait s" >&2
  sleep "$wait" &
  child=$!
  wait "$child"
  [ -n "$stopping" ] && exit "$code"
  wait=$((wait * 2 > 600 ? 600 : wait * 2))
done
