#!/usr/bin/env bash
# Sets up, lints and tests. Arguments go to pytest: bash scripts/test.sh tests/denoiser
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --test
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
