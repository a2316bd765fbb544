#!/usr/bin/env bash
# Creates, uses and deletes a TPU slice. Settings are environment variables; DRY_RUN=1 prints the commands instead.
#
#   NAME=walt ZONE=us-east5-a TYPE=v5p-128 bash scripts/pod.sh create
#   ... bash scripts/pod.sh install REPOSITORY_URL [BRANCH]
#   ... bash scripts/pod.sh train --gin_file=gin/walt_3b.gin --gin.MODEL_DIR=\"gs://BUCKET/run\" ...
#   ... bash scripts/pod.sh watch | stacks | stop | delete
#
# NAME, ZONE: name and zone of the slice. TYPE: accelerator type. RUNTIME: software version (by default that of the
# type). SLICES: number of slices (multislice), 1 by default. SPOT=1: preemptible. PROJECT: by default gcloud's.
set -euo pipefail
: "${NAME:?the name of the slice}" "${ZONE:?its zone}"
SLICES=${SLICES:-1}

# One write per line, because the commands of several slices are printed concurrently.
run() { if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "$(printf '%q ' "$@")"; else "$@"; fi; }
tpus() { run gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }

# Runs a command on every host of every slice.
everywhere() {
  if [ "$SLICES" -eq 1 ]; then
    tpus tpu-vm ssh "$NAME" --worker=all --command="$1"
  else
    local i
    for ((i = 0; i < SLICES; i++)); do tpus tpu-vm ssh "$NAME-$i" --worker=all --command="$1" & done
    wait
  fi
}

case "${1:-}" in
  create)
    : "${TYPE:?the accelerator type, such as v5p-128}"
    case $TYPE in
      v5p-*) version=v2-alpha-tpuv5 ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
    if [ "$SLICES" -eq 1 ]; then nodes=(--node-id="$NAME"); else nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    tpus queued-resources create "$NAME" "${nodes[@]}" --accelerator-type="$TYPE" \
      --runtime-version="${RUNTIME:-$version}" ${SPOT:+--spot}
    ;;
  status) tpus queued-resources describe "$NAME" ;;
  install)
    : "${2:?the repository}"
    everywhere "[ -d walt_t5x ] || git clone --branch ${3:-main} $2 walt_t5x; cd walt_t5x && git fetch && \
git checkout ${3:-main} && git pull && bash scripts/setup.sh && .venv/bin/pip install --no-deps --require-hashes \
-r requirements-tpu.lock -r requirements-stores.lock"
    ;;
  train)
    shift
    [ $# -gt 0 ] || { echo "pod: train needs the arguments of walt_t5x.train" >&2; exit 1; }
    # setsid: the run survives the end of the ssh connection. Only one run at a time can use the devices.
    everywhere "cd walt_t5x && setsid nohup bash scripts/keep_training.sh .venv/bin/python -m walt_t5x.train \
--multiprocess --debug $(printf '%q ' "$@")>> train.log 2>&1 < /dev/null & echo \$! > walt_t5x/train.pid"
    ;;
  watch) tpus tpu-vm ssh "$([ "$SLICES" -eq 1 ] && echo "$NAME" || echo "$NAME-0")" --worker=0 \
    --command="tail -n 50 -F walt_t5x/train.log" ;;
  stacks) everywhere "pkill -USR1 -f '^[^ ]*python -m walt_t5x.train'; sleep 1; tail -n 200 walt_t5x/train.log" ;;
  # The run saves and exits; keep_training.sh forwards the signal and does not restart it.
  stop) everywhere "pkill -TERM -f '^bash scripts/keep_training.sh' || true" ;;
  delete) tpus queued-resources delete "$NAME" --force ;;
  *)
    echo "pod: got '${1:-}', expected create, status, install, train, watch, stacks, stop or delete" >&2
    exit 2
    ;;
esac
