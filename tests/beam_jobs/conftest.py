"""A tiny VAE checkpoint and a tiny text encoder with random weights, made once per session."""

import dataclasses
import hashlib
import json
import pathlib
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core

from beam_jobs import preprocess
from tests.beam_jobs import media


def _view_once(view_as):
  """`PipelineOptions.view_as` with one view of each class: Beam makes a parser for each, hundreds of times in a job."""
  views = {}

  def view(self, cls):
    # The view refers to the options of which it is one, so their id is not used again.
    key = id(self._all_options), cls
    if key not in views:
      views[key] = view_as(self, cls)
    return views[key]

  return view


PipelineOptions.view_as = _view_once(PipelineOptions.view_as)


def _inspect_once(arguments_of):
  """`get_function_args_defaults` that inspects each function once: Beam asks thousands of times in a job."""
  found = weakref.WeakKeyDictionary()

  def inspect(function):
    if not isinstance(function, types.MethodType):
      return arguments_of(function)
    if function.__func__ not in found:
      found[function.__func__] = arguments_of(function)
    names, defaults = found[function.__func__]
    return list(names), list(defaults)

  return inspect


core.get_function_args_defaults = _inspect_once(core.get_function_args_defaults)

VAE_FIELDS = {
  "latent_channels": 8,
  "base_channels": 4,
  "channel_multipliers": (1, 2, 4),
  "num_res_blocks": 0,
  "temporal_downsample": (True, True),
}


@dataclasses.dataclass(frozen=True)
class World:
  """Paths of the encoders that a preprocessing run needs."""

  gin: str
  checkpoint: str
  text: str

  def argv(self, manifest: pathlib.Path, output: pathlib.Path, **flags) -> list[str]:
    """Command line of a small run; `flags` override its defaults."""
    values = {
      "manifest": manifest,
      "output": output,
      "task": "toy",
      "vae_gin_file": self.gin,
      "vae_checkpoint": self.checkpoint,
      "text_encoder": self.text,
      "resolutions": "16x16,32x32",
      "num_frames": 9,
      "fps": 8,
      "num_shards": 2,
      "batch_size": 2,
      "image_batch_size": 4,
    } | flags
    return [f"--{name}={value}" for name, value in values.items()]


def save_checkpoint(folder: pathlib.Path, params) -> None:
  """Saves `checkpoint_7` in the engine's layout."""
  tree = {"target": params, "state": {"step": np.int32(7), "param_states": {}}}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      (folder / "checkpoint_7").resolve(),
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)),
    )


def weights(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
  """Random kernels that preserve the scale of activations; biases and scales near one."""
  if len(shape) < 2:
    return (1 + 0.1 * random.normal(size=shape)).astype(np.float32)
  return (random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
  """Encoders on disk."""
  from walt_t5x.text.config import PRESETS
  from walt_t5x.text.encoder import save_encoder
  from walt_t5x.text.init_encoder import random_weights
  from walt_t5x.text.vocabulary import train_vocabulary
  from walt_t5x.vae.autoencoder import CausalVae

  folder = tmp_path_factory.mktemp("encoders")
  lines = ["from __gin__ import dynamic_registration", "from walt_t5x.vae import autoencoder"]
  lines += [f"autoencoder.CausalVae.{name} = {value!r}" for name, value in VAE_FIELDS.items()]
  (folder / "vae.gin").write_text("\n".join(lines) + "\n")
  video = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
  shapes = jax.eval_shape(CausalVae(**VAE_FIELDS).init, jax.random.key(0), video)["params"]
  random = np.random.default_rng(0)
  save_checkpoint(folder / "vae", jax.tree.map(lambda leaf: weights(leaf.shape, random), shapes))
  vocabulary = train_vocabulary([f"a red circle number {i} moves left" for i in range(20)])
  config = dataclasses.replace(PRESETS["tiny"], vocab_size=len(vocabulary))
  save_encoder(
    folder / "text", config=config, weights=random_weights(config, 0), vocabulary=vocabulary
  )
  return World(str(folder / "vae.gin"), str(folder / "vae"), str(folder / "text"))


def write_manifest(folder: pathlib.Path, rows: list[dict | str]) -> pathlib.Path:
  """Writes manifest.jsonl in a folder."""
  text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path = folder / "manifest.jsonl"
  path.write_text("".join(line + "\n" for line in text))
  return path


def good_rows(folder: pathlib.Path, *, videos: int = 5, images: int = 3) -> list[dict]:
  """Writes media files that become records; returns their manifest rows."""
  rows = []
  for i in range(videos):
    (folder / f"clip{i}.mp4").write_bytes(media.video(seed=i, height=32, width=48))
    caption = f"a red circle number {i} moves left"
    split = "validation" if i == videos - 1 else "train"
    rows.append({"uri": f"clip{i}.mp4", "captions": [caption, "a circle"], "split": split})
  for i in range(images):
    (folder / f"still{i}.png").write_bytes(media.image(seed=20 * i, height=40, width=32))
    rows.append({"uri": f"still{i}.png", "caption": f"a circle number {i}", "label": i})
  return rows


def digests(folder: pathlib.Path) -> dict[str, str]:
  """sha256 of every file under a folder."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
  """A run on valid rows and every kind of invalid row: (folder, argv, result)."""
  folder = tmp_path_factory.mktemp("corpus")
  good = good_rows(folder)
  clip = media.video(noise=40)
  (folder / "cut.mp4").write_bytes(clip[: len(clip) // 2])
  (folder / "text.mp4").write_text("this is not a video\n" * 50)
  (folder / "sound.mp4").write_bytes(media.audio())
  (folder / "empty.jpg").write_bytes(b"")
  bad = [
    {"uri": name, "caption": "x"}
    for name in ("cut.mp4", "text.mp4", "sound.mp4", "empty.jpg", "nowhere.mp4")
  ]
  turned_away = [good[0], {"uri": "clip1.mp4", "start_seconds": 0.25}]
  manifest = write_manifest(folder, [*good, *bad, *turned_away, "{ no json", ""])
  argv = world.argv(manifest, folder / "out")
  return folder, argv, preprocess.run(argv)
