"""One trained stage: its metadata without weights, and its weights for sampling."""

import copy
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from data import schema
from data.provenance import Provenance, read_provenance
from walt_t5x.engine.checkpoints import (
  checkpoint_step,
  find_checkpoint,
  load_params,
  state_metadata,
)
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.input_shapes import parameter_axes, parameter_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """Configuration of a stage.

  Attributes:
    name: "base", "sr1", "sr2"; names the stage's files.
    model: network and sampler.
    checkpoint: `checkpoint_<step>` folder, or a model_dir (its newest complete checkpoint).
    latents: field of the latents it makes, e.g. "latents/5x16x16".
    low_resolution: field of the latents it is given; None for the base stage.
    ema: sample with the averaged weights.
    weights_dtype: dtype of the weights in memory; "bfloat16" halves their size. None keeps the saved dtype.
  """

  name: str
  model: DenoiserModel
  checkpoint: str
  latents: str
  low_resolution: str | None = None
  ema: bool = True
  weights_dtype: str | None = None

  @property
  def module(self) -> Any:
    """The network."""
    return self.model.module

  def with_sampler(self, **changes: Any) -> "StageConfig":
    """The stage with another sampler, see `models.sampling.SamplerConfig.changed`."""
    model = copy.copy(self.model)
    model.sampler = model.sampler.changed(**changes)
    return dataclasses.replace(self, model=model)

  def parameter_shapes(self, text_length: int = 64) -> Any:
    """Shapes and dtypes of the parameters in training, see `models.input_shapes.parameter_shapes`."""
    return parameter_shapes(
      self.model,
      field=self.latents,
      low_resolution=self.low_resolution,
      text_length=text_length,
    )

  def parameter_axes(self) -> dict[str, Any]:
    """Logical names of the parameters' axes, see `models.input_shapes.parameter_axes`."""
    return parameter_axes(self.model, field=self.latents, low_resolution=self.low_resolution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageInfo:
  """A stage without its weights: the folder and step of its checkpoint, and the provenance of its training data."""

  config: StageConfig
  checkpoint: str
  step: int
  provenance: Provenance

  @classmethod
  def read(cls, config: StageConfig) -> "StageInfo":
    """Finds the checkpoint and reads the provenance next to it.

    Raises:
      FileNotFoundError: no complete checkpoint, or no provenance.json next to it.
      ValueError: the stage was not trained on the latents that `config` names.
    """
    folder = find_checkpoint(config.checkpoint)
    provenance = read_provenance(os.path.dirname(folder))
    for field in (config.latents, config.low_resolution):
      if field is not None and field not in provenance.latents:
        raise ValueError(
          f"stage {config.name!r}: its training data had latents {sorted(provenance.latents)}, not {field!r}; set "
          "StageConfig.latents / low_resolution to fields it was trained on"
        )
    return cls(
      config=config, checkpoint=folder, step=checkpoint_step(folder), provenance=provenance
    )

  @property
  def latents_shape(self) -> tuple[int, int, int, int]:
    """(t, h, w, c) of a sample."""
    channels = self.provenance.latents[self.config.latents].channels
    return (*schema.latents_shape(self.config.latents), channels)

  def weight_bytes(self) -> int:
    """Size of the network's weights in memory; reads no array."""
    sizes = {k: v for k, v in state_metadata(self.checkpoint).items() if k[0] == "target"}
    return sum(
      math.prod(leaf.shape) * jnp.dtype(self.config.weights_dtype or leaf.dtype).itemsize
      for leaf in sizes.values()
    )

  def normalize(self, latents: Any, field: str) -> Any:
    """Latents of the tokenizer -> mean 0, standard deviation 1 per channel."""
    statistics = self.provenance.latents[field]
    return (latents - jnp.asarray(statistics.mean)) / jnp.asarray(statistics.std)

  def denormalize(self, latents: Any, field: str) -> Any:
    """The inverse of `normalize`."""
    statistics = self.provenance.latents[field]
    return latents * jnp.asarray(statistics.std) + jnp.asarray(statistics.mean)


def load_weights(info: StageInfo, shardings: Any = None) -> tuple[Any, str]:
  """Reads a stage's weights; returns the network's parameters and the sha256 of the saved weights.

  Args:
    info: the stage.
    shardings: sharding of each parameter, as nested dicts: no device then holds more than its own part. None for the
      default device.
  """
  params = load_params(info.checkpoint, ema=info.config.ema, shardings=shardings)
  fingerprint = weights_fingerprint(traverse_util.flatten_dict(params, sep="/"))

  def place(weights: Any) -> Array:
    floating = jnp.issubdtype(weights.dtype, jnp.floating)
    # A copy: an array keeps the host's copy of itself, from which its fingerprint was computed.
    return jnp.array(weights, info.config.weights_dtype if floating else None)

  return jax.tree.map(place, params), fingerprint
