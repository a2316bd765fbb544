#!/usr/bin/env bash
# Regenerates the lock files from requirements*.in, with hashes. Versions do not change if the .in files allow them;
# arguments go to uv:
#
#   bash scripts/lock.sh [--upgrade | --upgrade-package=NAME]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# torch's CPU build for Python 3.11 on x86_64, from download.pytorch.org. It is not on PyPI, so uv cannot list its hash.
torch_cpu="2.13.0+cpu"
torch_cpu_hash=6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

compile() {
  .venv/bin/python -m uv pip compile --quiet --universal --python-version=3.11 --no-annotate --generate-hashes \
    --custom-compile-command="bash scripts/lock.sh" "$@" > /dev/null
}
compile requirements.in --override=requirements.override --output-file=requirements.lock "$@"
compile requirements-media.in --no-deps --output-file=requirements-media.lock "$@"
for part in curate gpu tpu stores; do
  compile "requirements-$part.in" --constraint=requirements.lock --override=requirements.override \
    --output-file="requirements-$part.lock" "$@"
done

compile requirements-test.in --constraint=requirements.lock --output-file=requirements-test-cuda.lock "$@"

# The same lock for the CPU build, without the CUDA packages that PyPI's build needs.
if ! grep -q "^torch==${torch_cpu%+cpu} " requirements-test-cuda.lock; then
  echo "lock: $(grep '^torch==' requirements-test-cuda.lock), but torch_cpu=$torch_cpu in $0: set it and its hash" >&2
  exit 1
fi
awk -v torch="torch==$torch_cpu --hash=sha256:$torch_cpu_hash" '
  /^[a-z]/ { left_out = /^(cuda|nvidia|torch|triton)/; if (/^torch==/) print torch }
  !left_out' requirements-test-cuda.lock > requirements-test.lock
