"""One trained stage, loaded and ready to sample: its network, its weights and what its latents mean."""

import dataclasses
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data.provenance import Provenance, read_provenance
from walt_t5x.engine.checkpoints import checkpoint_step, find_checkpoint, load_params
from walt_t5x.models.denoiser_model import DenoiserModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """What gin says of a stage.

  Attributes:
    name: "base", "sr1", "sr2"; names the stage's files.
    model: network and sampler.
    checkpoint: `checkpoint_<step>` folder, or a model_dir (its newest whole checkpoint).
    latents: field of the latents it makes, e.g. "latents/5x16x16".
    low_resolution: field of the latents it is given; None for the base stage.
    ema: sample with the averaged weights.
  """

  name: str
  model: DenoiserModel
  checkpoint: str
  latents: str
  low_resolution: str | None = None
  ema: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage with its weights.

  Attributes:
    config: as given.
    params: the network's parameters.
    step: training step of the checkpoint.
    provenance: of the rows it was trained on: encoders, statistics, null caption.
  """

  config: StageConfig
  params: dict
  step: int
  provenance: Provenance

  @classmethod
  def load(cls, config: StageConfig) -> "Stage":
    """Reads weights and provenance.

    Raises:
      FileNotFoundError: if there is no whole checkpoint, or no provenance.json beside it.
      ValueError: if the stage was not trained on the latents that `config` names.
    """
    folder = find_checkpoint(config.checkpoint)
    provenance = read_provenance(os.path.dirname(str(folder)))
    for field in (config.latents, config.low_resolution):
      if field is not None and field not in provenance.latents:
        raise ValueError(
          f"stage {config.name!r}: its training data had latents {sorted(provenance.latents)}, not {field!r}; set "
          "StageConfig.latents / low_resolution to fields it was trained on"
        )
    params = jax.tree.map(jnp.asarray, load_params(str(folder), ema=config.ema))
    return cls(config=config, params=params, step=checkpoint_step(folder), provenance=provenance)

  def normalise(self, latents: Array, field: str) -> Array:
    """Latents of the tokenizer -> mean 0, standard deviation 1 a channel."""
    statistics = self.provenance.latents[field]
    return (latents - jnp.asarray(statistics.mean)) / jnp.asarray(statistics.std)

  def denormalise(self, latents: Array, field: str) -> Array:
    """The inverse of `normalise`."""
    statistics = self.provenance.latents[field]
    return latents * jnp.asarray(statistics.std) + jnp.asarray(statistics.mean)


def check_cascade(stages: list[Stage]) -> None:
  """Refuses stages that do not fit together, naming both sides.

  Raises:
    ValueError: if a stage is not given what the one before it makes, or their tokenizers or text encoders differ.
  """
  if not stages:
    raise ValueError("no stages to run: set generate.stages")
  if stages[0].config.low_resolution is not None:
    raise ValueError(
      f"the first stage {stages[0].config.name!r} expects low-resolution latents "
      f"{stages[0].config.low_resolution!r}: put the base stage first"
    )
  for below, above in itertools.pairwise(stages):
    if above.config.low_resolution != below.config.latents:
      raise ValueError(
        f"stage {above.config.name!r} takes {above.config.low_resolution!r} but stage {below.config.name!r} makes "
        f"{below.config.latents!r}: set their order or StageConfig.low_resolution"
      )
    for part in ("vae", "text_encoder"):
      ours = getattr(above.provenance, part)["fingerprint"]
      theirs = getattr(below.provenance, part)["fingerprint"]
      if ours != theirs:
        raise ValueError(
          f"stages {below.config.name!r} and {above.config.name!r} were trained with different {part} weights: "
          f"{theirs} and {ours}; train both on caches of one encoder"
        )


def noise_for(seed: int, stage: str, indices: np.ndarray, shape: tuple[int, ...]) -> Array:
  """Standard normal [B, *shape]: each sample's noise depends on its seed, stage and index, not on its batch."""
  key = jax.random.fold_in(jax.random.key(seed), sum(map(ord, stage)))
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices))
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
