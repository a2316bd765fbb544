#!/usr/bin/env bash
# Sets up, lints, checks types and tests. Arguments go to pytest: bash scripts/test.sh tests/denoiser
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --test
source scripts/allocator.sh
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# The variable leaves out the question to the package index for a newer version.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright
# -B: what tests compile holds checks of annotations, and no program may load it.
exec .venv/bin/python -B -m pytest "$@"
