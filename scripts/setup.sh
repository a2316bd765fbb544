#!/usr/bin/env bash
# Creates .venv from the lock files. Needs python3 (3.11 or 3.12) with venv and a package index. Does nothing if the
# environment already matches the locks. VENV=DIR creates another environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=""
for candidate in "${PYTHON:-python3}" python3.11 python3.12; do
  if "$candidate" -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
    >/dev/null 2>&1; then
    python="$candidate"
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: found no python3 of version 3.11 or 3.12 with venv (on Debian: apt-get install python3-venv)." >&2
  echo "setup: set PYTHON to one, for example PYTHON=/usr/bin/python3.11 bash $0" >&2
  exit 1
fi

venv=${VENV:-.venv}
locks=(requirements.lock requirements-media.lock)
if [ "${1:-}" = "--test" ]; then
  locks+=(requirements-stores.lock requirements-curate.lock requirements-test-cuda.lock requirements-test.lock)
fi
stamp="$venv/.installed-$(basename "${locks[-1]}")"
digest=$(cat "${locks[@]}" scripts/setup.sh | sha256sum | cut -d ' ' -f 1)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then
  exit 0
fi

echo "setup: installing into $venv (about 3 GB; a minute or two)" >&2
started=$SECONDS
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes "$@"; }
uv() { UV_HTTP_TIMEOUT=180 "$venv/bin/python" -m uv pip install --quiet --python "$venv/bin/python" --no-deps --require-hashes "$@"; }
# uv installs the lock several times faster than pip; pip is used on platforms without uv.
installer=pip
if awk '/^[a-z]/ { found = /^uv==/ } found' requirements.lock | pip -r /dev/stdin 2>/dev/null; then
  installer=uv
fi
"$installer" -r requirements.lock
# Only the media files of these packages are used, so their dependencies are not installed.
"$installer" -r requirements-media.lock
if [ "${1:-}" = "--test" ]; then
  "$installer" -r requirements-stores.lock -r requirements-curate.lock
  # pip, not uv: it uses local wheels (PIP_FIND_LINKS), and torch's CPU build is often installed that way.
  if ! pip -r requirements-test.lock 2>/dev/null; then
    echo "setup: pip did not find the locked CPU build of torch; installing PyPI's with CUDA (5 GB)" >&2
    "$installer" -r requirements-test-cuda.lock
  fi
fi
# Otherwise each process with PYTHONDONTWRITEBYTECODE, and each test, would compile TensorFlow's sources again.
"$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python*/site-packages > /dev/null 2>&1 || true
echo "$digest" > "$stamp"
echo "setup: done in $((SECONDS - started)) s" >&2
