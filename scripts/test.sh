#!/usr/bin/env bash
# Sets up, lints, checks types and runs the tests. Arguments go to pytest: bash scripts/test.sh tests/denoiser
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --test
source scripts/allocator.sh
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Comments, messages and docs: American spelling, and no phrase of scripts/prose.toml.
.venv/bin/codespell
.venv/bin/python -B scripts/prose.py
# -B: bytecode compiled by tests contains annotation checks, and other programs must not load it.
.venv/bin/python -B -m pytest "$@" && status=0 || status=$?
# After the tests, whose time limits and durations are those of idle cores. The variable skips the check for a newer
# version on the package index.
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright || status=$?
exit "$status"
