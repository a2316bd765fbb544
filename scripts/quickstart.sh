#!/usr/bin/env bash
# Sets up, then runs the complete pipeline at toy size on the CPU: corpus, tokenizer, preprocessing, base and
# super-resolution stages, generation, scoring, gallery, report. 12 minutes on 2 idle cores.
#
#   bash scripts/quickstart.sh [FOLDER] [--fast]     # default: runs/quickstart; --fast: less training, lower bars
#   bash scripts/quickstart.sh --showcase            # larger clips and richer captions
#   bash scripts/quickstart.sh --smallest --store=gs # writes to a store that it starts; too little training to show anything
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case " $* " in
  *" --store"*) bash scripts/setup.sh --test ;;
  *) bash scripts/setup.sh ;;
esac
source scripts/allocator.sh
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
exec .venv/bin/python -m scripts.quickstart "$@"
