"""The Dockerfiles: copied files exist, Beam is the lock's version, and the linter passes. No image is built."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KEPT = [
  line[1:]
  for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
  if line.startswith("!")
]


@pytest.fixture(params=DOCKERFILES, ids=lambda file: file.stem)
def dockerfile(request):
  return request.param.read_text(encoding="utf-8")


def test_copied_files_exist_and_are_sent_to_the_builder(dockerfile):
  copies = re.findall(r"^COPY (?:--\S+ )*(.+)$", dockerfile, re.MULTILINE)
  sources = [source for copy in copies for source in shlex.split(copy)[:-1]]
  assert {"requirements.lock", "gin", "walt_t5x", "data", "beam_jobs"} <= set(sources)
  for source in sources:
    assert (ROOT / source).exists(), f"COPY {source}"
    assert any(fnmatch.fnmatch(source, kept) for kept in KEPT), f"{source} is in .dockerignore"


def test_locks_that_a_build_may_name_are_copied(dockerfile):
  copied = " ".join(re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE))
  named = set(re.findall(r"EXTRA_LOCK=(\S+\.lock)", dockerfile))
  assert named and all(lock in copied for lock in named)


def test_beam_workers_have_the_locked_beam():
  base = re.search(
    r"^FROM apache/beam_python3\.11_sdk:(\S+)$",
    (ROOT / "docker/beam.Dockerfile").read_text(encoding="utf-8"),
    re.MULTILINE,
  )
  locked = re.search(
    r"^apache-beam==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE
  )
  assert base[1] == locked[1]


def test_the_linter_passes():
  beside_python = Path(sys.executable).with_name("hadolint")
  hadolint = str(beside_python) if beside_python.exists() else shutil.which("hadolint")
  if hadolint is None:
    pytest.skip("hadolint is not installed: bash scripts/setup.sh")
  done = subprocess.run(
    [hadolint, *map(str, DOCKERFILES)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
