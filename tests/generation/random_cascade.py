"""A cascade with random weights (checkpoints, provenance, text encoder), to test shapes, memory and time untrained."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from data.provenance import FILE_NAME, LatentStatistics, Provenance
from walt_t5x.files import storage
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.generation.stage import StageConfig
from walt_t5x.text.config import PRESETS, T5Config
from walt_t5x.text.encoder import TextEncoder, save_encoder
from walt_t5x.text.init_encoder import random_weights
from walt_t5x.text.vocabulary import train_vocabulary
from walt_t5x.vae.autoencoder import CausalVae, Posterior

CAPTIONS = ("a red square moves right", "a blue circle moves up", "a yellow triangle moves left")


def write_random_cascade(
  config: CascadeConfig, *, captions: Sequence[str] = CAPTIONS, seed: int = 0, spread: float = 0.05
) -> None:
  """Writes every file that `config` refers to; the checkpoints have step 0.

  Args:
    config: names the folders; the text encoder has the tiny preset's depth and the stages' text width.
    captions: texts that the vocabulary is made from.
    seed: seed of the weights.
    spread: scale of the noise added to every parameter: a new network's outputs are zero, which would hide errors.
  """
  rng = np.random.default_rng(seed)
  factor, frames = config.vae.spatial_factor, 1 + 2 * config.vae.temporal_factor
  clip = jnp.asarray(rng.uniform(size=(1, frames, 4 * factor, 4 * factor, 3)), jnp.float32)
  params = jax.jit(config.vae.init)(jax.random.key(seed), clip)["params"]
  _save(config.vae_checkpoint, {"vae": params}, ema=config.vae_ema)

  def encode(params: Any, clip: jax.Array) -> jax.Array:
    return cast(Posterior, config.vae.apply({"params": params}, clip, method="encode")).mean

  latents = jax.jit(encode)(params, clip)
  statistics = LatentStatistics(
    channels=config.vae.latent_channels,
    mean=np.asarray(latents.mean((0, 1, 2, 3)), np.float64).tolist(),
    std=np.asarray(latents.std((0, 1, 2, 3)), np.float64).tolist(),
  )
  text: dict[str, Any] = {}
  null = np.zeros((0, 0), np.float32)
  if config.reads_text:
    assert config.text_encoder is not None
    width = max(stage.module.text_dim for stage in config.stages)
    text, null = _write_text_encoder(config.text_encoder, captions, width=width, seed=seed)
  flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
  fields = [f for s in config.stages for f in (s.latents, s.low_resolution) if f]
  provenance = Provenance(
    fps=8.0,
    num_frames=frames,
    vae={
      "fingerprint": weights_fingerprint(flat),
      "config": _fields_of(config.vae),
      "checkpoint": config.vae_checkpoint,
    },
    text_encoder=text,
    latents=dict.fromkeys(fields, statistics),
    null_ids=np.zeros(len(null), np.int32),
    null_embedding=null,
  )
  for number, stage in enumerate(config.stages):
    _save(
      stage.checkpoint,
      random_params(stage, text_length=config.text_length, seed=seed + number, spread=spread),
      ema=stage.ema,
    )
    storage.write(storage.join(stage.checkpoint, FILE_NAME), provenance.to_json())


def random_params(stage: StageConfig, *, text_length: int, seed: int, spread: float) -> Any:
  """Initial parameters of a stage, plus noise."""
  # From shapes only: running the initializers would take a forward pass.
  wanted = stage.parameter_shapes(text_length)
  rng = np.random.default_rng(seed)

  def draw(leaf: Any) -> np.ndarray:
    fan_in = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1
    gain = spread if len(leaf.shape) < 2 else fan_in**-0.5
    return (gain * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

  return jax.tree.map(draw, wanted)


def _fields_of(vae: CausalVae) -> dict[str, Any]:
  """CausalVae's fields as preprocessing writes them."""
  names = {field.name for field in dataclasses.fields(vae)} - {"parent", "name", "dtype"}
  fields = {name: getattr(vae, name) for name in names} | {"dtype": jnp.dtype(vae.dtype).name}
  return json.loads(json.dumps(fields))


def _write_text_encoder(
  folder: str, captions: Sequence[str], *, width: int, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
  vocabulary = train_vocabulary(captions)
  fields = {**vars(PRESETS["tiny"]), "d_model": width, "vocab_size": len(vocabulary)}
  config = T5Config(**fields)
  save_encoder(folder, config=config, weights=random_weights(config, seed), vocabulary=vocabulary)
  encoder = TextEncoder.load(folder)
  (null,) = encoder.encode(encoder.tokenize([""], 8))
  described = {
    "fingerprint": encoder.fingerprint,
    "embedding_dim": width,
    "folder": folder,
  }
  return json.loads(json.dumps(described)), null


def _save(folder: str, params: Any, *, ema: bool, average: Any = None) -> None:
  """Saves one checkpoint in the engines' layout; `average` of the parameters defaults to the parameters themselves."""
  params = jax.device_get(params)
  average = {"count": np.int32(0), "ema": params if average is None else jax.device_get(average)}
  state: dict[str, Any] = {
    "target": params,
    "state": {"step": np.int32(0), "param_states": {"0": average if ema else {}}},
  }
  with ocp.CheckpointManager(
    os.path.abspath(folder),
    options=ocp.CheckpointManagerOptions(step_prefix="checkpoint", create=True),
    item_handlers={"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
  ) as manager:
    manager.save(0, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), force=True)
