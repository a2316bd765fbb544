#!/usr/bin/env bash
# Sets up, then runs every command of docs/reproduce.md for one corpus with small networks and few steps on the CPU.
# 5 to 10 minutes on 2 cores.
#
#   bash scripts/rehearse.sh ucf101|k600|imagenet|t2v [--corpus DIR] [--output FOLDER] [--list]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
if [ "${1:-}" = t2v ] && ! .venv/bin/python -c 'import scenedetect' 2>/dev/null; then
  # Finds the cuts of the long videos.
  .venv/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements-curate.lock
fi
source scripts/allocator.sh
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
exec .venv/bin/python -m scripts.rehearse "$@"
