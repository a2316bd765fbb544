"""Imports follow one direction, light modules import no heavy packages, and programs answer `--help` quickly."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("walt_t5x", "data", "beam_jobs")

# What the files of a folder, and of the folders in it, may import of ours, next to each other and walt_t5x.types.
# Programs are the files directly in walt_t5x/ and beam_jobs/: they import anything, and only programs import them.
ALLOWED = {
  "walt_t5x/files": (),
  "walt_t5x/config": ("walt_t5x/files",),
  "walt_t5x/media": ("walt_t5x/files",),
  "walt_t5x/sharding": (),
  "walt_t5x/vae": ("walt_t5x/files", "walt_t5x/config"),
  "walt_t5x/denoiser": ("walt_t5x/sharding",),
  "walt_t5x/diffusion": (),
  "walt_t5x/text": ("walt_t5x/files", "walt_t5x/config"),
  "walt_t5x/metrics": ("walt_t5x/files", "walt_t5x/config", "walt_t5x/media"),
  "data": ("walt_t5x/files", "walt_t5x/config", "walt_t5x/media"),
  "walt_t5x/engine": ("walt_t5x/files", "walt_t5x/config"),
  "walt_t5x/models": (
    "walt_t5x/files",
    "walt_t5x/vae",
    "walt_t5x/denoiser",
    "walt_t5x/diffusion",
    "walt_t5x/metrics",
    "walt_t5x/media",
    "walt_t5x/engine",
    "data",
  ),
  "walt_t5x/planning": (
    "walt_t5x/files",
    "walt_t5x/config",
    "walt_t5x/engine",
    "walt_t5x/models",
    "data",
  ),
  "beam_jobs/sources": ("walt_t5x/files", "walt_t5x/media", "data"),
  "beam_jobs/filters": ("walt_t5x/media", "beam_jobs/sources"),
  "beam_jobs/shards": (
    "walt_t5x/files",
    "walt_t5x/media",
    "walt_t5x/vae",
    "walt_t5x/text",
    "walt_t5x/metrics",
    "walt_t5x/engine",
    "data",
    "beam_jobs/sources",
    "beam_jobs/filters",
  ),
  "walt_t5x/html": (
    "walt_t5x/files",
    "walt_t5x/media",
    "walt_t5x/text",
    "walt_t5x/metrics",
    "walt_t5x/engine",
    "data",
    "beam_jobs/sources",
    "beam_jobs/shards",
  ),
  "beam_jobs/curation": (
    "walt_t5x/files",
    "walt_t5x/media",
    "walt_t5x/metrics",
    "beam_jobs/sources",
    "beam_jobs/filters",
    "beam_jobs/shards",
    "walt_t5x/html",
  ),
  "walt_t5x/generation": (
    "walt_t5x/files",
    "walt_t5x/config",
    "walt_t5x/media",
    "walt_t5x/sharding",
    "walt_t5x/vae",
    "walt_t5x/denoiser",
    "walt_t5x/text",
    "walt_t5x/engine",
    "walt_t5x/models",
    "walt_t5x/html",
    "data",
  ),
  "walt_t5x/evaluation": (
    "walt_t5x/files",
    "walt_t5x/config",
    "walt_t5x/media",
    "walt_t5x/vae",
    "walt_t5x/metrics",
    "walt_t5x/engine",
    "walt_t5x/generation",
    "walt_t5x/html",
    "data",
  ),
  "beam_jobs/runners": (
    "walt_t5x/files",
    "walt_t5x/media",
    "walt_t5x/config",
    "walt_t5x/evaluation",
    "beam_jobs/sources",
    "beam_jobs/filters",
    "beam_jobs/shards",
  ),
}
LIBRARIES = ("vae", "denoiser", "diffusion", "text", "metrics")
HEAVY = ("seqio", "tensorflow", "apache_beam", "t5x", "gin")
PROGRAMS = (
  "walt_t5x.init",
  "walt_t5x.train",
  "walt_t5x.generate",
  "walt_t5x.demo",
  "walt_t5x.serve",
  "walt_t5x.export",
  "walt_t5x.compare_samples",
  "walt_t5x.compare_upscaling",
  "walt_t5x.plan_sampling",
  "walt_t5x.evaluate",
  "walt_t5x.inspect_data",
  "walt_t5x.plan",
  "walt_t5x.report",
  "walt_t5x.reconstruct",
  "walt_t5x.evaluation.benchmark_requests",
  "walt_t5x.evaluation.vbench",
  "walt_t5x.text.init_encoder",
  "walt_t5x.text.import_encoder",
  "walt_t5x.metrics.import_weights",
  "walt_t5x.train_surrogate",
  "walt_t5x.vae.import_lpips",
  "data.samples",
  "data.lookalikes",
  "beam_jobs.preflight",
  "beam_jobs.curate",
  "beam_jobs.caption",
  "beam_jobs.preprocess",
  "beam_jobs.evaluate",
  "beam_jobs.replay",
  "beam_jobs.job_service",
  "beam_jobs.worker_pool",
)


def _files():
  for package in OURS:
    for file in sorted((ROOT / package).rglob("*.py")):
      module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
      yield module, file


def _imports(file, *, top_level_only=False):
  tree = ast.parse(file.read_text(encoding="utf-8"))
  for node in tree.body if top_level_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      # `from walt_t5x import engine` imports walt_t5x.engine.
      if node.module in OURS:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
      else:
        yield node.module


def _graph():
  """Module -> the modules of ours that it imports, wherever in its text."""
  modules = {module for module, _ in _files()}
  graph = {}
  for module, file in _files():
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= names & modules or {node.module}
    graph[module] = (found & modules) - {module}
  return graph


def _folder(module):
  """The entry of the table; None for a program, a package and walt_t5x.types."""
  path = module.replace(".", "/")
  return next((folder for folder in ALLOWED if path.startswith(folder + "/")), None)


def test_imports_follow_one_direction():
  wrong = []
  for module, imported in _graph().items():
    folder = _folder(module)
    for other in sorted(imported - {"walt_t5x", "walt_t5x.types"}):
      target = _folder(other) or other.replace(".", "/")
      if folder and target != folder and target not in ALLOWED[folder]:
        wrong.append(f"{module} imports {other}; {folder} may import only {ALLOWED[folder]}")
  assert not wrong, "\n".join(wrong)
  assert len(ALLOWED) <= 21
  # The table itself has one direction: each folder after those that it names.
  order = list(ALLOWED)
  for folder, others in ALLOWED.items():
    assert all(order.index(other) < order.index(folder) for other in others), folder


def test_no_files_import_each_other_in_a_circle():
  graph = _graph()
  while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
    for module in leaves:
      del graph[module]
  circles = {module: sorted(imported & graph.keys()) for module, imported in graph.items()}
  assert not circles


def test_the_packages_hold_programs_and_folders():
  for package in ("walt_t5x", "beam_jobs"):
    for file in (ROOT / package).glob("*.py"):
      if file.name not in ("__init__.py", "types.py"):
        assert 'if __name__ == "__main__":' in file.read_text(encoding="utf-8"), file


def test_libraries_import_no_engine_and_no_pipeline():
  for module, file in _files():
    if module.startswith(tuple(f"walt_t5x.{name}." for name in LIBRARIES)):
      found = {name.split(".")[0] for name in _imports(file)} & set(HEAVY)
      assert not found, f"{module} imports {found}"


def test_beam_workers_import_neither_tensorflow_nor_seqio():
  for module, file in _files():
    if module.startswith("beam_jobs"):
      found = {name.split(".")[0] for name in _imports(file)} & {"tensorflow", "seqio"}
      assert not found, f"{module} imports {found}"


def test_gin_folder_does_not_shadow_the_gin_package():
  assert not list((ROOT / "gin").rglob("*.py"))


def _seconds(*arguments):
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  return time.monotonic() - started, done


def _modules_loaded_by(code):
  _, done = _seconds("-X", "importtime", "-c", code)
  assert done.returncode == 0, done.stderr[-2000:]
  return {
    line.rsplit("|", 1)[-1].strip().split(".")[0]
    for line in done.stderr.splitlines()
    if "|" in line
  }


def test_importing_the_package_loads_nothing_heavy():
  assert not _modules_loaded_by("import walt_t5x") & {"jax", "flax", *HEAVY}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy_and_names_the_program(program):
  _, done = _seconds("-X", "importtime", "-m", program, "--help")
  assert done.returncode == 0, done.stderr[-2000:]
  assert program.split(".")[-1] in done.stdout or "flags" in done.stdout
  loaded = {
    line.rsplit("|", 1)[-1].strip().split(".")[0]
    for line in done.stderr.splitlines()
    if "|" in line
  }
  assert not loaded & {"jax", "flax", "tensorflow", "seqio", "apache_beam", "torch"}


def test_the_documented_way_of_an_example_is_at_most_25_files():
  page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
  walk = page.partition("## One example")[2].partition("\n## ")[0]
  files = set(re.findall(r"`([\w/]+\.py)`", walk))
  assert 20 <= len(files) <= 25
  assert [name for name in sorted(files) if not (ROOT / name).is_file()] == []
