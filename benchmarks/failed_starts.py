"""Starts that fail or are interrupted, followed by the corrected command: is the folder that of a first start?

  python -m benchmarks.failed_starts --folder=/tmp/failed

Each point is one program with a wrong setting, an error at its n-th written file, or an interruption at a named call.
The start must fail; then the right command runs in the same folder, and its files are compared with those of a fresh
folder. Models are tiny or replaced. Prints the table, and writes failed_starts.json and .md next to this file.
`tests/failed_starts_test.py` checks the points that are marked as quick.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import results
from benchmarks.failing_programs import PROGRAMS, Program
from walt_t5x.files import storage


@dataclasses.dataclass(frozen=True)
class Point:
  """A start that fails.

  Attributes:
    program: a key of `PROGRAMS`.
    wrong: what fails, in words.
    changes: of the command; they are corrected in the second start.
    call: module:name of a function that raises `error` at its `number`-th call.
    number: of the call, or of the written file if there is no `call`; 0 for a command that is wrong enough.
    quick: whether the tests check the point.
  """

  program: str
  wrong: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  call: str = ""
  number: int = 0
  error: BaseException = dataclasses.field(default_factory=KeyboardInterrupt)
  quick: bool = False

  @property
  def name(self) -> str:
    """Name of the point."""
    return f"{self.program}: {self.wrong}"


def full_disk() -> OSError:
  """The error of a write to a full disk."""
  return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def failing(point: Point) -> Iterator[None]:
  """Injects the error of a point inside the block."""
  calls = 0

  def due() -> bool:
    nonlocal calls
    calls += 1
    return calls == point.number

  if not point.number:
    yield
    return
  if not point.call:
    writer = storage.writer

    @contextlib.contextmanager
    def broken_writer(path: storage.PathLike) -> Iterator[Any]:
      with writer(path) as stream:
        yield stream
        if due():
          raise full_disk()

    with mock.patch.object(storage, "writer", broken_writer):
      yield
    return
  module, _, name = point.call.partition(":")
  *owners, last = name.split(".")
  owner = functools.reduce(getattr, owners, importlib.import_module(module))
  original = getattr(owner, last)

  def broken(*args: Any, **kwargs: Any) -> Any:
    if due():
      raise point.error
    return original(*args, **kwargs)

  with mock.patch.object(owner, last, broken):
    yield


def check(point: Point, folder: Path) -> tuple[str, list[str]]:
  """How the start of a point failed, and the files that differ after the corrected command; `folder` keeps inputs.

  Raises:
    AssertionError: the start did not fail.
  """
  program = _program(point.program, folder)
  output = folder / "output" / hashlib.sha256(point.name.encode()).hexdigest()[:8]
  expected = _fresh(point.program, folder)
  with _quiet():
    with failing(point):
      try:
        program.run(output, **point.changes)
      except (Exception, KeyboardInterrupt, SystemExit) as error:
        assert not isinstance(error, SystemExit) or error.code, "the start succeeded"
        failure = f"{type(error).__name__}: {error}".split("\n")[0]
      else:
        raise AssertionError(f"{point.name}: the start did not fail")
    program.run(output)
  found = program.content(output)
  names = sorted(found.keys() | expected.keys())
  return failure, [name for name in names if found.get(name) != expected.get(name)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the output of the programs, in which the output of the benchmark would be lost."""
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    yield


@functools.cache
def _program(name: str, folder: Path) -> Program:
  inputs = folder / "inputs" / name
  inputs.mkdir(parents=True)
  with _quiet():
    return PROGRAMS[name](inputs)


@functools.cache
def _fresh(name: str, folder: Path) -> Mapping[str, str]:
  program, output = _program(name, folder), folder / "fresh" / name
  with _quiet():
    program.run(output)
  return program.content(output)


_TRAINER = "walt_t5x.engine.builtin.trainer:Trainer"
_WRITE_CLIP = "walt_t5x.evaluation.reconstruction:ReconstructionFolder.write"
_WRITE_SAMPLE = "walt_t5x.generation.sampling_run:write_sample"


def _disk(program: str, *numbers: int, quick: int = 0, **changes: Any) -> list[Point]:
  """A full disk at the files of these numbers."""
  with_what = f" of a command with {', '.join(changes)}" if changes else ""
  return [
    Point(program, f"disk full at file {n}{with_what}", changes, number=n, quick=n == quick)
    for n in numbers
  ]


POINTS = [
  Point("train", "no checkpoint to start from", {"lost": True}),
  Point("train", "features of another length", {"features": 5}),
  Point(
    "train", "data of another VAE, Ctrl-C before step 1", {"data": "of another"},
    call=f"{_TRAINER}.compile_train", number=1, quick=True,
  ),
  Point(
    "train", "another width, Ctrl-C before step 1", {"width": 16},
    call=f"{_TRAINER}.compile_train", number=1, quick=True,
  ),
  Point(
    "train", "another width and seed, Ctrl-C in step 1", {"width": 16, "random_seed": 1},
    call=f"{_TRAINER}.train", number=1,
  ),
  Point(
    "train", "another seed, disk full at checkpoint 0", {"random_seed": 1},
    call="walt_t5x.engine.builtin.checkpoint_manager:CheckpointManager.save", number=1,
    error=full_disk(),
  ),
  Point("train", "Ctrl-C after checkpoint 2", call=f"{_TRAINER}.train", number=3),
  *_disk("train", 1, 2, 3, data="of another", width=16),
  Point("preprocess", "wrong --media_root", {"media_root": "/nowhere"}),
  Point("preprocess", "a filter that rejects all, more shards", {"filter": "seconds>=99", "num_shards": 3}),
  Point("preprocess", "larger --resolutions than the media", {"resolutions": "640x640"}),
  Point("preprocess", "missing manifest", {"manifest": "/nowhere.jsonl"}),
  Point("preprocess", "latents without a VAE", {"content": "latents"}),
  Point("preprocess", "Ctrl-C before COMPLETED", call="beam_jobs.shards.ledger:complete", number=1),
  *_disk("preprocess", 1, 2, 3, 5),
  Point("generate", "missing text encoder", {"text_encoder": "/missing"}, quick=True),
  Point("generate", "unknown format", {"formats": ("avi",)}),
  Point(
    "generate", "wrong gin binding, Ctrl-C in batch 1", {"binding": 2},
    call=_WRITE_SAMPLE, number=1, quick=True,
  ),
  Point("generate", "Ctrl-C in batch 2", call=_WRITE_SAMPLE, number=4, quick=True),
  *_disk("generate", 1, 2, 3, quick=3, seed=1),
  Point("reconstruct", "two sizes and no --pixels", {"pixels": None}, quick=True),
  Point("reconstruct", "missing VAE", {"vae_checkpoint": "/missing"}),
  Point("reconstruct", "wrong --split", {"split": "test"}),
  Point(
    "reconstruct", "another VAE, Ctrl-C in batch 1", {"vae_checkpoint": "other"},
    call=_WRITE_CLIP, number=1, quick=True,
  ),
  Point("reconstruct", "Ctrl-C in batch 2", call=_WRITE_CLIP, number=2),
  *_disk("reconstruct", 1, 2, 3, 4, quick=3, vae_checkpoint="other"),
  Point("evaluate", "missing samples", {"samples": "/nowhere"}),
  Point("evaluate", "more --frames than the clips have", {"frames": 17}),
  Point(
    "evaluate", "Ctrl-C in part 2",
    call="walt_t5x.evaluation.scoring:Evaluation._compute", number=2, quick=True,
  ),
  *_disk("evaluate", 1, 3),
  Point("init_encoder", "missing captions", {"captions": "/nowhere"}),
  *_disk("init_encoder", 1, 2, 3, quick=3, seed=1),
  Point("import_encoder", "missing source", {"source": "/nowhere"}),
  Point("import_encoder", "missing vocabulary", {"vocabulary": "/nowhere"}),
  *_disk("import_encoder", 2),
  Point("export", "missing VAE", {"vae_checkpoint": "/missing"}),
  Point(
    "export", "Ctrl-C in the text encoder",
    call="walt_t5x.generation.preset_export:_write_text", number=1,
  ),
  *_disk("export", 1, 4),
  Point("lookalikes", "Ctrl-C at file 5", call="data.lookalikes.corpus:Corpus.write", number=5),
  Point(
    "lookalikes", "--faults, Ctrl-C at file 9", {"faults": True},
    call="data.lookalikes.corpus:Corpus.write", number=9,
  ),
]  # fmt: skip


def main() -> None:
  """Checks all points, and prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=Path, help="of the files; by default a temporary one")
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  parser.add_argument("--only", default="", help="check the points whose name contains this")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  folder = args.folder or Path(tempfile.mkdtemp(prefix="failed_starts"))
  shutil.rmtree(folder, ignore_errors=True)
  found = []
  for point in POINTS:
    if args.only in point.name:
      failure, differing = check(point, folder)
      failure = re.sub(r"(\.tmp-)[0-9a-f]+", r"\1", failure.replace(str(folder), ""))
      found.append(
        {"program": point.program, "wrong": point.wrong, "failure": failure, "differing": differing}
      )
      print(f"{point.name:<70} {failure[:60]:<60} {differing or 'same'}", flush=True)
  failed = [one for one in found if one["differing"]]
  lines = [
    "# Failed starts",
    "",
    f"`python -m benchmarks.failed_starts`: {len(found)} starts that fail, each followed by the corrected command in",
    f"the same folder. {len(found) - len(failed)} of {len(found)} folders end as a fresh one does.",
    "",
    "| program | what fails | differs from a fresh folder |",
    "| --- | --- | --- |",
    *(
      f"| {r['program']} | {r['wrong']} | {', '.join(r['differing']) or 'nothing'} |" for r in found
    ),
  ]
  if not args.only:
    results.write(args.output, "failed_starts", "\n".join(lines) + "\n", found)
  if failed:
    raise SystemExit(f"failed_starts: {len(failed)} folders differ")


if __name__ == "__main__":
  main()
