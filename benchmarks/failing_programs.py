"""Programs on tiny inputs in this process, with a way to compare their folders, for `benchmarks.failed_starts`."""

import argparse
import dataclasses
import hashlib
import json
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
  """A program on fixed inputs.

  Attributes:
    run: `f(output, **changes)` runs it in this process; the changes make the command wrong.
    content: the files that matter, by name, with digests.
  """

  run: Callable[..., Any]
  content: Callable[[Path], Mapping[str, str]]


def _files(output: Path) -> dict[str, str]:
  """sha256 of every file, without the name of the folder where a page or a manifest has it."""
  return {
    str(file.relative_to(output)): hashlib.sha256(
      file.read_bytes().replace(bytes(output), b"OUTPUT")
    ).hexdigest()
    for file in sorted(output.rglob("*"))
    if file.is_file()
  }


def _training(inputs: Path) -> Program:
  from tests.engine import runs, toy
  from walt_t5x import engine
  from walt_t5x.engine import checkpoints

  def run(
    output: Path,
    *,
    data: str = "right",
    width: int = 8,
    features: int = 4,
    lost: bool = False,
    **changes: Any,
  ) -> None:
    given = {"vae": {"fingerprint": data}, "fps": len(data)}
    restore = engine.RestoreCheckpointConfig(path=str(inputs)) if lost else None
    save = engine.CheckpointConfig(
      engine.SaveCheckpointConfig(period=2, save_dataset=True), restore
    )
    rows = runs.dataset(task_feature_lengths={"x": features, "y": 1, "id": 1})
    model = toy.ToyModel(runs.optimizers.adamw(runs.SCHEDULE), width=width, noise=0.1)
    with mock.patch.object(toy.TASK, "walt_provenance", given, create=True):
      runs.train(output, 3, model=model, train_dataset_cfg=rows, checkpoint_cfg=save, **changes)

  def content(output: Path) -> dict[str, str]:
    found = {}
    for folder in sorted(output.glob("*checkpoint_*")):
      if folder.is_dir():
        flat = checkpoints.load_params(folder)
        arrays = sorted((name, np.asarray(flat[name]).tobytes()) for name in flat)
        found[folder.name] = hashlib.sha256(repr(arrays).encode()).hexdigest()
    # The curves of both starts are kept.
    curves = ("events.out", "metrics.jsonl")
    rest = _files(output).items()
    return found | {n: d for n, d in rest if "/" not in n and not n.startswith(curves)}

  return Program(run, content)


def _preprocessing(inputs: Path) -> Program:
  from beam_jobs import preprocess
  from tests.beam_jobs.conftest import good_rows, write_manifest

  rows: list[Any] = good_rows(inputs, videos=2, images=0)
  flags: dict[str, Any] = {"manifest": write_manifest(inputs, rows)}
  flags |= {"task": "toy", "content": "pixels", "resolutions": "16x16", "num_frames": 9}
  flags |= {"num_shards": 1, "decode_isolation": "thread"}

  def run(output: Path, **changes: Any) -> None:
    flat = flags | {"output": output} | changes
    preprocess.run([f"--{name}={value}" for name, value in flat.items()])

  return Program(run, _files)


def _generation(inputs: Path) -> Program:
  from tests.generation.sampling_run_test import CONFIG, _Cascade
  from walt_t5x import generate
  from walt_t5x.generation import loading
  from walt_t5x.generation.prepared_requests import SamplingSettings
  from walt_t5x.generation.requests import make_requests

  (inputs / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
  made_from = {"fps": 8.0, "vae": {"fingerprint": "v"}, "text_encoder": {"fingerprint": "t"}}

  def infos(config: Any) -> list[Any]:
    fields = {
      "checkpoint": str(inputs),
      "step": 1,
      "provenance": types.SimpleNamespace(**made_from),
    }
    return [types.SimpleNamespace(config=stage, **fields) for stage in config.stages]

  def load(config: Any, *_: Any, **__: Any) -> Any:
    if config.text_encoder == "/missing":
      raise FileNotFoundError("No config.json in /missing")
    cascade: Any = _Cascade()
    cascade.cut_prompts = lambda prompts: {}
    return cascade

  def run(output: Path, *, binding: int = 1, text_encoder: str = "t", **changes: Any) -> None:
    config = dataclasses.replace(CONFIG, text_encoder=text_encoder)
    fields: dict[str, Any] = {"num_samples": 2, "batch_size": 2}
    settings = SamplingSettings(**(fields | changes))
    requests = make_requests(["a red square", "a blue circle"])
    with (
      mock.patch.object(loading, "read_infos", infos),
      mock.patch.object(loading, "load_cascade", load),
    ):
      gin = f"STEPS = {binding}\ntext_encoder = {text_encoder!r}\n"
      generate.run(config, requests, settings, output=str(output), described=gin)

  return Program(run, _files)


def _reconstruction(inputs: Path) -> Program:
  from data import schema, tfrecord
  from walt_t5x import reconstruct
  from walt_t5x.generation import pixel_codec

  clips = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3)).astype(np.uint8)
  with (inputs / "validation.tfrecord-00000-of-00001").open("wb") as stream:
    for index, clip in enumerate(clips):
      record = schema.Record(
        id=f"{index:064x}"[::-1], uri=f"{index}.mp4", modality="video", latents={}, fps=8.0,
        captions=[""], text_ids=[np.zeros(0, np.int32)], text_embedding=[np.zeros((0, 0))],
        caption_weights=[1.0], pixels={"pixels/5x16x16": clip, "pixels/5x8x8": clip[:, ::2, ::2]},
      )  # fmt: skip
      stream.write(tfrecord.frame(schema.encode(record)))
  (inputs / "stats.validation.json").write_text(json.dumps({"examples": 3}))

  class Codec:
    """Returns what it is given."""

    def __init__(self, *_: Any, **__: Any):
      pass

    def reconstruct(self, frames: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
      videos = np.stack([np.stack(list(one)) for one in frames])
      yield videos, videos

  def load(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    if args.vae_checkpoint == "/missing":
      raise FileNotFoundError("no complete checkpoint in /missing")
    return None, None, {"vae_fingerprint": args.vae_checkpoint}

  def run(output: Path, **changes: Any) -> None:
    flags = {"vae_gin_file": "g", "vae_checkpoint": "c", "cache": inputs, "batch_size": 1}
    flags |= {"pixels": "pixels/5x16x16", "output": output} | changes
    with (
      mock.patch.object(reconstruct, "load_vae", load),
      mock.patch.object(pixel_codec, "PixelCodec", Codec),
    ):
      reconstruct.main([f"--{name}={value}" for name, value in flags.items() if value is not None])

  return Program(run, _files)


def _evaluation(inputs: Path) -> Program:
  from walt_t5x import evaluate
  from walt_t5x.media import writing

  rng = np.random.default_rng(0)
  for index in range(4):
    clip = rng.integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    writing.write_video(inputs / "clips" / f"{index}.mp4", clip, fps=8)

  def run(output: Path, **changes: Any) -> None:
    flags = {"protocol": "motion", "samples": inputs / "clips", "count": 4, "clips_per_part": 2}
    flags |= {"frames": 9, "parts_dir": output / "parts", "output": output / "scores.json"}
    evaluate.run([f"--{name}={value}" for name, value in (flags | changes).items()])

  return Program(run, _files)


def _captions(inputs: Path) -> Path:
  path = inputs / "manifest.jsonl"
  rows = (
    {"caption": f"a {color} square moves {way}"}
    for color in ("red", "blue")
    for way in ("up", "left")
  )
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _init_encoder(inputs: Path) -> Program:
  from walt_t5x.text import init_encoder

  captions = _captions(inputs)

  def run(output: Path, **changes: Any) -> None:
    flags = {"captions": captions, "output": output} | changes
    init_encoder.main([f"--{name}={value}" for name, value in flags.items()])

  return Program(run, _files)


def _import_encoder(inputs: Path) -> Program:
  from walt_t5x.text import import_encoder, init_encoder

  source = inputs / "source"
  init_encoder.main([f"--captions={_captions(inputs)}", f"--output={source}"])

  def run(output: Path, **changes: Any) -> None:
    flags = {"source": source, "output": output} | changes
    import_encoder.main([f"--{name}={value}" for name, value in flags.items()])

  return Program(run, _files)


def _export(inputs: Path) -> Program:
  from tests.generation import cascades
  from walt_t5x.generation.preset_export import export

  made = cascades.written(inputs, base=cascades.model(steps=1))

  def run(output: Path, **changes: Any) -> None:
    config = dataclasses.replace(made, **changes)
    named = cast(
      dict[str, Any], dict.fromkeys(("name", "description", "license_name", "trained_by"), "x")
    )
    export(config, output=output, **named)

  return Program(run, _files)


def _lookalike(inputs: Path) -> Program:
  from data.lookalikes import corpora

  def run(output: Path, **changes: Any) -> None:
    corpora.write_corpus("ucf101", output, **changes)

  return Program(run, _files)


PROGRAMS: Mapping[str, Callable[[Path], Program]] = {
  "train": _training,
  "preprocess": _preprocessing,
  "generate": _generation,
  "reconstruct": _reconstruction,
  "evaluate": _evaluation,
  "init_encoder": _init_encoder,
  "import_encoder": _import_encoder,
  "export": _export,
  "lookalikes": _lookalike,
}
