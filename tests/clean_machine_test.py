"""Tests have no effect on programs, and the scripts select an allocator that the machine has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

from walt_t5x.denoiser import windows

ROOT = Path(__file__).resolve().parents[1]


def test_annotations_are_checked_during_tests():
  with pytest.raises(jaxtyping.TypeCheckError, match="tokens"):
    windows.to_cells(jnp.zeros((2, 3)), (1, 1))


def test_tests_leave_no_bytecode_that_a_program_can_load(tmp_path):
  """After `pytest` from a plain shell in a copy of the tree, a program finds no module that checks annotations."""
  for part in ("walt_t5x/__init__.py", "walt_t5x/types.py", "tests/__init__.py"):
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / part, tmp_path / part)
  for part in ("pyproject.toml", "tests/conftest.py", "tests/programs.py", "tests/workers.py"):
    shutil.copy(ROOT / part, tmp_path / part)
  # Programs that ran here have left their own.
  own = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "walt_t5x/denoiser", tmp_path / "walt_t5x/denoiser", ignore=own)
  (tmp_path / "tests/one_test.py").write_text(
    "from walt_t5x.denoiser import windows\n\ndef test_it():\n  assert windows.common_cell((1, 4, 4))\n"
  )
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-n", "0"],
    cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert "1 passed" in done.stdout, done.stdout + done.stderr
  assert not list((tmp_path / "walt_t5x").rglob("*.pyc"))


def _allocator(**settings):
  clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
  script = f'source {ROOT / "scripts/allocator.sh"} && echo "$LD_PRELOAD|$GLIBC_TUNABLES"'
  return subprocess.run(
    ["bash", "-c", script], env=clean | settings, capture_output=True, text=True, check=False
  )


def test_the_scripts_select_and_report_an_allocator():
  chosen = _allocator()
  library, tunables = chosen.stdout.strip().split("|")
  # One of the two, depending on the machine; the message names it.
  assert bool(library) != bool(tunables)
  assert (library or tunables) in chosen.stderr
  if library:
    assert Path(library).is_file()
  assert _allocator(ALLOCATOR="hugetlb").stdout.strip() == "|glibc.malloc.hugetlb=1"
  assert _allocator(ALLOCATOR="glibc").stdout.strip() == "|"
  # The caller's preloads are kept, as on TPU hosts.
  assert _allocator(LD_PRELOAD="", GLIBC_TUNABLES="glibc.malloc.arena_max=2").stdout.strip() == (
    "|glibc.malloc.arena_max=2"
  )
  wrong = _allocator(ALLOCATOR="jemalloc")
  assert (
    wrong.returncode
    and "got ALLOCATOR=jemalloc, expected tcmalloc, hugetlb or glibc" in wrong.stderr
  )


def test_a_machine_without_tcmalloc_gets_huge_pages(tmp_path):
  (tmp_path / "ldconfig").write_text("#!/bin/sh\n")
  (tmp_path / "ldconfig").chmod(0o755)
  path = f"{tmp_path}:{os.environ['PATH']}"
  without = _allocator(PATH=path)
  assert without.stdout.strip() == "|glibc.malloc.hugetlb=1"
  asked = _allocator(PATH=path, ALLOCATOR="tcmalloc")
  assert asked.returncode and "apt-get install libtcmalloc-minimal4" in asked.stderr


def test_a_long_list_of_libraries_does_not_end_a_script_with_pipefail(tmp_path):
  line = "libtcmalloc_minimal.so.4 (libc6,x86-64) => /usr/lib/libtcmalloc_minimal.so.4"
  (tmp_path / "ldconfig").write_text(f"#!/bin/sh\necho '\t{line}'\nyes | head -n 200000\n")
  (tmp_path / "ldconfig").chmod(0o755)
  clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
  script = f"set -euo pipefail; source {ROOT / 'scripts/allocator.sh'}; printf %s $LD_PRELOAD"
  environment = clean | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  done = subprocess.run(
    ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stdout) == (0, line.split()[-1])
