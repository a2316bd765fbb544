"""A cascade with a lossless tokenizer, so that conditioning frames must be reproduced exactly, and random weights."""

import dataclasses
import functools
import types
from pathlib import Path

import numpy as np

from data.provenance import LatentStatistics, Provenance
from tests.generation import cascades
from tests.generation.random_cascade import random_params
from walt_t5x.generation.cascade import Batch, Cascade
from walt_t5x.generation.conditioning_media import ConditioningMedia
from walt_t5x.generation.stage import StageInfo

FACTOR = 4  # Frames per latent frame: 17 frames are 5 latent frames.
PROMPTS = ["a red square", "a blue circle", "a green dot", "a sun"]


class Packing:
  """A lossless causal tokenizer: four frames are concatenated along the channels, the first one is separate."""

  @dataclasses.dataclass
  class Factors:
    temporal_factor: int = FACTOR
    spatial_factor: int = 1
    latent_channels: int = 3 * FACTOR

  vae = Factors()

  def encode(self, frames):
    frames = np.concatenate([frames[:, :1]] * (FACTOR - 1) + [frames], axis=1)
    b, t, h, w, _ = frames.shape
    packed = frames.reshape(b, t // FACTOR, FACTOR, h, w, 3).transpose(0, 1, 3, 4, 2, 5)
    return packed.reshape(b, t // FACTOR, h, w, 3 * FACTOR).astype(np.float32) / 255

  def decode(self, latents):
    b, t, h, w, _ = latents.shape
    frames = latents.reshape(b, t, h, w, FACTOR, 3).transpose(0, 1, 4, 2, 3, 5)
    frames = frames.reshape(b, t * FACTOR, h, w, 3)[:, FACTOR - 1 :]
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


class Words:
  """A text encoder that encodes a caption's letters."""

  embedding_dim = 8

  def tokenize(self, texts, length):
    return [[ord(letter) for letter in text[:length]] for text in texts]

  def encode(self, tokens):
    return [np.sin(np.outer(ids, np.arange(1, 9))).astype(np.float32) for ids in tokens]


STATISTICS = LatentStatistics(channels=12, mean=[0.5] * 12, std=[0.25] * 12)
PROVENANCE = Provenance(
  fps=8.0,
  num_frames=17,
  vae={"fingerprint": "v"},
  text_encoder={"fingerprint": "t", "embedding_dim": 8},
  latents={cascades.BASE: STATISTICS, cascades.SR: STATISTICS},
  null_embedding=np.ones((1, 8), np.float32),
)


@functools.cache
def params_of(name):
  (config,) = [c for c in stage_configs() if c.name == name]
  return random_params(config, text_length=8, seed=ord(name[0]), spread=0.1)


@functools.cache
def stage_configs():
  sr = {"patch_size": 2, "low_resolution_scale": 2, "pooled_text": False, "guidance": None}
  channels = {"latent_channels": 12}
  made = cascades.config(
    Path("/nowhere"), base=cascades.model(**channels), sr=cascades.model(**channels, **sr)
  )
  return made.stages


def make_cascade(*, batch_size=2, mesh=None, configs=None, load=None, **options):
  infos = [
    StageInfo(config=config, checkpoint="", step=1, provenance=PROVENANCE)
    for config in configs or stage_configs()
  ]
  return Cascade(
    infos=infos,
    text_encoder=Words(),
    text_length=8,
    codec=Packing(),
    batch_size=batch_size,
    mesh=mesh,
    load=load or (lambda i: (params_of(i.config.name), "f")),
    **options,
  )


def make_batch(*indices, media=None):
  return Batch(indices=indices, prompts=[PROMPTS[i] for i in indices], media=[media] * len(indices))


def samples_of(cascade, *batches, **options):
  determined = ("seed", "extensions", "decoded_conditioning")
  fields = {"seed": 3} | {name: options.pop(name) for name in determined if name in options}
  made = cascade.run([dataclasses.replace(batch, **fields) for batch in batches], **options)
  return [sample for batch in made for sample in batch]


def make_clip(frames, *, side=8, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)


def make_media(frames, count):
  return ConditioningMedia(path="x", sha256="s", frames=frames, conditioning_frames=count)


def shown(media, *, factor=4, extensions=0, **options):
  """One clip of a tokenizer that decodes 9 frames at a time, none of which equals its input."""
  cascade = make_cascade(batch_size=1, configs=stage_configs()[:1])
  made = iter(range(100))

  def decode(latents):
    return np.full((1, 9, 4, 4, 3), 100 + next(made), np.uint8)

  cascade._weights = lambda info: None
  cascade._sample = lambda *_, **__: np.zeros((1, 3, 4, 4, 12))
  cascade.codec = types.SimpleNamespace(
    vae=Packing.Factors(temporal_factor=factor), encode=lambda frames: None, decode=decode
  )
  (sample,) = samples_of(cascade, make_batch(0, media=media), extensions=extensions, **options)
  return sample
