#!/usr/bin/env bash
# Sets up, then runs the complete pipeline at toy size on the CPU: corpus, tokenizer, preprocessing, base and
# super-resolution stages, generation, scoring, gallery, report. 12 minutes on 2 idle cores.
#
#   bash scripts/quickstart.sh [FOLDER] [--fast]     # default: runs/quickstart; --fast: less training, lower bars
#   bash scripts/quickstart.sh --showcase            # larger clips and richer captions
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
source scripts/allocator.sh
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
exec .venv/bin/python -m scripts.quickstart "$@"
