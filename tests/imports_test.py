"""Imports point one way, heavy packages stay out of light modules, and programs answer `--help` at once."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("walt_t5x", "data", "beam_jobs")

# What each part may import of ours, besides itself and walt_t5x.types. Longest prefix wins.
ALLOWED = {
  "walt_t5x.types": (),
  "walt_t5x.vae": (),
  "walt_t5x.denoiser": (),
  "walt_t5x.diffusion": (),
  "walt_t5x.text": (),
  "walt_t5x.metrics": (),
  "walt_t5x.metrics.train_stand_in": ("walt_t5x.metrics", "data.shapes"),
  "walt_t5x.entry_points": (),
  "walt_t5x.gin_files": (),
  "walt_t5x.video_io": (),
  "walt_t5x.image_modes": (),
  "walt_t5x.lossless_video": (),
  "walt_t5x.embedded_media": (),
  "walt_t5x.gallery": (
    "walt_t5x.video_io",
    "walt_t5x.gallery_page",
    "walt_t5x.embedded_media",
    "walt_t5x.offline_page",
  ),
  "walt_t5x.gallery_page": (),
  "walt_t5x.offline_page": (),
  "walt_t5x.data_page": ("walt_t5x.video_io", "walt_t5x.embedded_media", "walt_t5x.offline_page"),
  "walt_t5x.engine": ("walt_t5x.flops", "walt_t5x.gin_files"),
  "walt_t5x.models": (
    "walt_t5x.vae",
    "walt_t5x.denoiser",
    "walt_t5x.diffusion",
    "walt_t5x.text",
    "walt_t5x.metrics",
    "walt_t5x.engine",
    "data.feature_converters",
    "data.packed_text",
    "data.schema",
    "walt_t5x.video_io",
  ),
  "walt_t5x.flops": (),
  "walt_t5x.partitioning": (),
  "walt_t5x.hlo_collectives": (),
  "walt_t5x.tpu_compile": ("walt_t5x.engine",),
  "walt_t5x.tpu_report": ("walt_t5x.tpu_compile", "walt_t5x.hlo_collectives"),
  "walt_t5x.plan_text": (),
  "walt_t5x.gin_flags": ("walt_t5x.engine", "walt_t5x.gin_files"),
  "walt_t5x.generation": (
    "walt_t5x.models",
    "walt_t5x.vae",
    "walt_t5x.denoiser",
    "walt_t5x.text",
    "walt_t5x.engine",
    "walt_t5x.gallery",
    "walt_t5x.image_modes",
    "walt_t5x.partitioning",
    "walt_t5x.video_io",
    "data.provenance",
    "data.schema",
  ),
  "data.cache_folders": (),
  "walt_t5x.evaluation": (
    "walt_t5x.metrics",
    "walt_t5x.generation",
    "walt_t5x.video_io",
    "walt_t5x.lossless_video",
    "walt_t5x.vae",
    "walt_t5x.engine.builtin.summaries",
  ),
  "data.shapes": (),
  "data.packed_text": (),
  "data.schema": ("data.packed_text",),
  "data.tfrecord": (),
  "data.provenance": ("data.schema",),
  "data.feature_converters": ("data.packed_text",),
  "data.raw_shards": (),
  "data.deny_list": ("data.schema",),
  "data.cached_tasks": ("data.schema", "data.provenance", "data.raw_shards"),
  "data.rows": ("data.schema", "data.provenance", "data.cached_tasks", "data.deny_list"),
  "data.tasks": ("data.schema", "data.cached_tasks", "data.rows"),
  "data.real_media": ("walt_t5x.video_io",),
  "data.samples": ("data.shapes", "data.real_media", "walt_t5x.video_io"),
  "beam_jobs": (
    "data.schema",
    "data.tfrecord",
    "data.provenance",
    "walt_t5x.vae",
    "walt_t5x.text",
    "walt_t5x.engine.checkpoints",
    "walt_t5x.gin_files",
    "walt_t5x.image_modes",
  ),
  "beam_jobs.evaluate": ("beam_jobs", "walt_t5x.evaluate", "walt_t5x.evaluation"),
  "beam_jobs.evaluation_parts": ("walt_t5x.evaluate", "walt_t5x.evaluation"),
  "walt_t5x.reporting": (
    "walt_t5x.engine.checkpoints",
    "walt_t5x.embedded_media",
    "walt_t5x.offline_page",
  ),
  # Programs may import anything.
  "walt_t5x.train": OURS,
  "walt_t5x.generate": OURS,
  "walt_t5x.demo": OURS,
  "walt_t5x.compare_upscaling": OURS,
  "walt_t5x.evaluate": OURS,
  "walt_t5x.plan": OURS,
  "walt_t5x.run_plan": OURS,
  "walt_t5x.plan_sampling": OURS,
  "walt_t5x.report": OURS,
  "walt_t5x.reconstruct": OURS,
  "walt_t5x.held_out_clips": OURS,
  "walt_t5x.inspect_data": OURS,
  "walt_t5x.inspection": OURS,
}
LIBRARIES = ("vae", "denoiser", "diffusion", "text", "metrics")
HEAVY = ("seqio", "tensorflow", "apache_beam", "t5x", "gin")
PROGRAMS = (
  "walt_t5x.train",
  "walt_t5x.generate",
  "walt_t5x.demo",
  "walt_t5x.compare_upscaling",
  "walt_t5x.plan_sampling",
  "walt_t5x.evaluate",
  "walt_t5x.inspect_data",
  "walt_t5x.plan",
  "walt_t5x.report",
  "walt_t5x.reconstruct",
  "walt_t5x.evaluation.benchmark_requests",
  "walt_t5x.text.init_encoder",
  "walt_t5x.text.import_encoder",
  "walt_t5x.metrics.import_weights",
  "walt_t5x.metrics.train_stand_in",
  "walt_t5x.vae.import_lpips",
  "data.samples",
  "beam_jobs.preprocess",
  "beam_jobs.evaluate",
  "beam_jobs.replay",
  "beam_jobs.job_service",
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


def _part(module):
  matches = [p for p in ALLOWED if module == p or module.startswith(p + ".")]
  return max(matches, key=len, default=None)


def _inside(module, parts):
  return any(module == p or module.startswith(p + ".") for p in parts)


def test_imports_point_one_way():
  wrong = []
  for module, file in _files():
    part = _part(module)
    if module in OURS:
      continue
    assert part, f"{module} is in no part of the import map of this test: add it where it belongs"
    allowed = (part, "walt_t5x.types", *ALLOWED[part])
    for imported in _imports(file):
      if imported.split(".")[0] in OURS and imported not in OURS:
        if not _inside(imported, allowed):
          wrong.append(f"{module} imports {imported}; {part} may import only {ALLOWED[part]}")
  assert not wrong, "\n".join(wrong)


def test_libraries_import_no_engine_and_no_pipeline():
  for module, file in _files():
    if _inside(module, [f"walt_t5x.{name}" for name in LIBRARIES]):
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
  assert done.returncode in (0, 1), done.stderr[-2000:]  # absl's --help exits with 1.
  assert program.split(".")[-1] in done.stdout or "flags" in done.stdout
  loaded = {
    line.rsplit("|", 1)[-1].strip().split(".")[0]
    for line in done.stderr.splitlines()
    if "|" in line
  }
  assert not loaded & {"jax", "flax", "tensorflow", "seqio", "apache_beam", "torch"}
