"""Compatibility checks before any network is loaded: between stages, their checkpoints, and the encoders."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from data import schema
from walt_t5x.engine.checkpoints import find_checkpoint, has_average, load_params, state_metadata
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.files.paths import as_path
from walt_t5x.generation.stage import StageConfig, StageInfo
from walt_t5x.text.config import CONFIG_FILE
from walt_t5x.text.encoder import TextEncoder
from walt_t5x.vae.autoencoder import CausalVae


def choose_stages(configs: Sequence[StageConfig], names: Sequence[str]) -> list[StageConfig]:
  """The stages to run.

  Args:
    configs: stages of the cascade, base first.
    names: stages to run, the cascade's first ones in order; empty for all.

  Raises:
    ValueError: `configs` is empty, or `names` are others.
  """
  known = [config.name for config in configs]
  if not known:
    raise ValueError("no stages to run: set generate.stages")
  if len(set(known)) < len(known):
    raise ValueError(f"the stages are named {known}: give each StageConfig.name a different value")
  names = list(names) or known
  if names != known[: len(names)]:
    fits = ", ".join(repr(",".join(known[: i + 1])) for i in range(len(known)))
    raise ValueError(
      f"--stages={','.join(names)}: each stage takes the output of the previous one; expected one of {fits}"
    )
  return list(configs[: len(names)])


def check_order(configs: Sequence[StageConfig], vae: CausalVae) -> None:
  """Rejects stages whose shapes are incompatible, naming both sides. Reads no files.

  Raises:
    ValueError: a stage is not given the output of the previous one, at the ratio of its network, or its latents
      have another number of channels than the tokenizer's.
  """
  first = configs[0]
  if first.low_resolution is not None:
    raise ValueError(
      f"the first stage {first.name!r} expects low-resolution latents {first.low_resolution!r}: put the base stage "
      "first"
    )
  for below, above in itertools.pairwise(configs):
    if above.low_resolution != below.latents:
      raise ValueError(
        f"stage {above.name!r} takes {above.low_resolution!r} but stage {below.name!r} makes {below.latents!r}: set "
        "their order or StageConfig.low_resolution"
      )
    t, h, w = schema.latents_shape(below.latents)
    scale = above.module.low_resolution_scale
    expected = schema.latents_field(t, h * max(scale, 1), w * max(scale, 1))
    if not scale or above.latents != expected:
      raise ValueError(
        f"stage {above.name!r} makes {above.latents!r} from {below.latents!r}, but its network upscales by a factor "
        f"of {scale or 1}: expected {expected!r}; set StageConfig.latents or WaltDenoiser.low_resolution_scale"
      )
  for config in configs:
    if config.module.latent_channels != vae.latent_channels:
      raise ValueError(
        f"stage {config.name!r} has {config.module.latent_channels} latent channels, the tokenizer "
        f"{vae.latent_channels}: set WaltDenoiser.latent_channels or CausalVae.latent_channels"
      )


def check_conditioning_frames(configs: Sequence[StageConfig], count: int, why: str) -> None:
  """Raises ValueError unless every stage was trained with this number of conditioning frames in latent space."""
  for config in configs:
    counts = config.model.frame_prediction_counts
    if not config.module.frame_prediction:
      raise ValueError(
        f"{why} gives past frames, but stage {config.name!r} has no input for them: set "
        "WaltDenoiser.frame_prediction = True and train it with this setting"
      )
    if count not in counts:
      raise ValueError(
        f"{why} gives {count} latent frames, but stage {config.name!r} was trained with "
        f"{list(counts)}: set DenoiserModel.frame_prediction_counts with {count} and train again"
      )


def check_provenance(infos: Sequence[StageInfo]) -> None:
  """Checks that stages were trained on data of the same encoders with the same normalization.

  Raises:
    ValueError: tokenizers, text encoders or the statistics of latents passed between stages differ; names both sides.
  """
  for below, above in itertools.pairwise(infos):
    names = below.config.name, above.config.name
    for part in ("vae", "text_encoder"):
      ours = getattr(above.provenance, part).get("fingerprint")
      theirs = getattr(below.provenance, part).get("fingerprint")
      if ours != theirs:
        raise ValueError(
          f"stages {names[0]!r} and {names[1]!r} were trained with different {part} weights: {theirs} and {ours}; "
          "train both on caches of one encoder"
        )
    field = below.config.latents
    made, taken = below.provenance.latents[field], above.provenance.latents[field]
    for moment in ("mean", "std"):
      a, b = np.asarray(getattr(made, moment)), np.asarray(getattr(taken, moment))
      # Two caches of one corpus agree up to rounding; a difference of 0.1 standard deviations means another corpus.
      if a.shape != b.shape or np.any(np.abs(a - b) > 0.1 * np.asarray(made.std)):
        raise ValueError(
          f"stages {names[0]!r} and {names[1]!r} were trained on {field!r} with another {moment}: "
          f"{a.round(4).tolist()} and {b.round(4).tolist()}; train both on caches of one corpus"
        )
  for info in infos:
    text_dim = info.config.module.text_dim
    width = info.provenance.text_encoder.get("embedding_dim", 0)
    if text_dim and text_dim != width:
      raise ValueError(
        f"stage {info.config.name!r} takes text of width {text_dim}, its training data had {width}: set "
        "WaltDenoiser.text_dim"
      )


def check_network(info: StageInfo, *, text_length: int) -> None:
  """Raises ValueError unless the checkpoint has the arrays of the network; compares shapes, reads no array."""
  config = info.config
  _compare(
    f"stage {config.name!r}: checkpoint {info.checkpoint}",
    _saved_shapes(info.checkpoint),
    config.parameter_shapes(text_length),
    "point StageConfig.checkpoint at a run of this gin file's network, or set WaltDenoiser's sizes to the run's",
  )


def tokenizer_params(
  vae: CausalVae, checkpoint: str, *, ema: bool | None, expected: str, setting: str
) -> dict:
  """The tokenizer's weights, if they are the ones that made the stages' latents.

  Args:
    ema: whether to read the averaged weights; None for those that have the fingerprint.
    expected: fingerprint in the stages' provenance.
    setting: the setting that names the checkpoint, for the message.

  Raises:
    ValueError: the network or the weights differ; names both fingerprints.
  """
  folder = find_checkpoint(checkpoint)
  factor = vae.spatial_factor
  video = jax.ShapeDtypeStruct((1, 1 + vae.temporal_factor, factor, factor, 3), np.float32)
  wanted = jax.eval_shape(lambda x: vae.init(jax.random.key(0), x)["params"], video)
  saved = {k[4:]: v for k, v in _saved_shapes(folder).items() if k.startswith("vae/")}
  _compare(f"tokenizer {folder}", saved, wanted, f"set {setting} or CausalVae's sizes")
  choices = [ema] if ema is not None else [True, False] if has_average(folder) else [False]
  params, got = {}, ""
  for choice in choices:
    params = load_params(folder, ema=choice)["vae"]
    got = weights_fingerprint(traverse_util.flatten_dict(params, sep="/"))
    if got == expected:
      break
  _same("tokenizer", got, expected, setting)
  return params


def load_text_encoder(folder: str, *, expected: str) -> TextEncoder:
  """Loads the encoder in `folder`, if it made the stages' text.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: the encoder is another one; names both fingerprints.
  """
  if not (as_path(folder) / CONFIG_FILE).is_file():
    raise FileNotFoundError(
      f"no {CONFIG_FILE} in {folder}: set generate.text_encoder to the folder that the training data was encoded with"
    )
  encoder = TextEncoder.load(folder)
  _same("text encoder", encoder.fingerprint, expected, "generate.text_encoder")
  return encoder


def _same(what: str, got: str, expected: str, setting: str) -> None:
  if got != expected:
    raise ValueError(
      f"the {what} has fingerprint {got}, but the stages were trained with {expected}: point {setting} to that one"
    )


def _saved_shapes(checkpoint: str) -> dict[str, tuple[int, ...]]:
  found = state_metadata(checkpoint)
  return {"/".join(k[1:]): tuple(v.shape) for k, v in found.items() if k[0] == "target"}


def _compare(what: str, saved: dict[str, tuple[int, ...]], network: Any, setting: str) -> None:
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(network), sep="/")
  wanted = {name: tuple(leaf.shape) for name, leaf in flat.items()}
  names = sorted(saved.keys() | wanted.keys())
  differing = [name for name in names if saved.get(name) != wanted.get(name)]
  if differing:
    shown = ", ".join(f"{n} {saved.get(n)} and {wanted.get(n)}" for n in differing[:3])
    raise ValueError(
      f"{what} does not have the network that gin describes: {len(differing)} of {len(names)} arrays differ (saved "
      f"and expected: {shown}); {setting}"
    )
