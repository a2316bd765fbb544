"""The cascade: text -> base latents -> super-resolution latents -> pixels."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data import schema
from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.generation.stage import Stage, check_cascade, noise_for
from walt_t5x.text.encoder import TextEncoder
from walt_t5x.vae.autoencoder import CausalVae


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One generated clip: pixels [T, H, W, 3] in [0, 1] of each stage, in order."""

  index: int
  prompt: str
  videos: dict[str, np.ndarray]


class Cascade:
  """Stages that fit together, the text encoder that they were trained with, and the tokenizer's decoder."""

  def __init__(
    self,
    *,
    stages: Sequence[Stage],
    text_encoder: TextEncoder,
    vae: CausalVae,
    vae_params: dict,
    vae_fingerprint: str,
    text_length: int,
  ):
    """Checks that everything belongs together before any sampling.

    Args:
      stages: base first.
      text_encoder: of the prompts.
      vae: tokenizer; its decoder makes the pixels.
      vae_params: its parameters.
      vae_fingerprint: of these parameters.
      text_length: L that the stages were trained with.

    Raises:
      ValueError: naming both sides of a mismatch.
    """
    check_cascade(list(stages))
    base = stages[0].provenance
    for what, got, expected, setting in (
      ("tokenizer", vae_fingerprint, base.vae["fingerprint"], "--vae_checkpoint"),
      (
        "text encoder",
        text_encoder.fingerprint,
        base.text_encoder["fingerprint"],
        "--text_encoder",
      ),
    ):
      if got != expected:
        raise ValueError(
          f"the {what} has fingerprint {got}, but the stages were trained with {expected}: point {setting} at that one"
        )
    self.stages = list(stages)
    self.text_encoder = text_encoder
    self.vae_params = jax.tree.map(jnp.asarray, vae_params)
    self.text_length = text_length
    self._decode = jax.jit(lambda params, z: vae.apply({"params": params}, z, method="decode"))
    self._sample = [jax.jit(self._sampler(stage)) for stage in self.stages]

  def _sampler(self, stage: Stage):
    """A function of (params, noise, text, mask, null text, low resolution and its noise), compiled once a shape."""
    model = stage.config.model

    def sample(params, noise, text, mask, null_text, low_resolution, low_noise):
      conditioning = Conditioning(text=text, text_mask=mask, low_resolution=low_resolution)
      if low_resolution is not None:
        time = jnp.full((noise.shape[0],), model.sampling_low_resolution_noise)
        conditioning = model.low_resolution_noised(conditioning, low_noise, time=time)
      return model.sample(params, noise, conditioning, null_text=null_text)

    return sample

  def encode_text(self, prompts: Sequence[str]) -> tuple[Array, Array]:
    """Prompts -> embeddings [B, 1, L, E] and mask [B, 1, L]."""
    tokens = self.text_encoder.tokenize(list(prompts), self.text_length)
    text = np.zeros(
      (len(prompts), 1, self.text_length, self.text_encoder.embedding_dim), np.float32
    )
    mask = np.zeros(text.shape[:3], bool)
    for row, embedding in enumerate(self.text_encoder.encode(tokens)):
      text[row, 0, : len(embedding)] = embedding
      mask[row, 0, : len(embedding)] = True
    return jnp.asarray(text), jnp.asarray(mask)

  def generate(
    self, prompts: Sequence[str], *, seed: int, batch_size: int, first_index: int = 0
  ) -> Iterator[list[Sample]]:
    """Yields the samples batch by batch.

    The last batch is filled up with its last prompt, so every batch runs the same compiled program, and a sample
    depends on its prompt, its index and the seed alone.
    """
    for start in range(0, len(prompts), batch_size):
      chosen = list(prompts[start : start + batch_size])
      rows = len(chosen)
      chosen += chosen[-1:] * (batch_size - rows)
      indices = first_index + start + np.arange(batch_size)
      videos = self._run(chosen, indices, seed)
      yield [
        Sample(
          index=int(indices[row]),
          prompt=chosen[row],
          videos={name: clips[row] for name, clips in videos.items()},
        )
        for row in range(rows)
      ]

  def _run(self, prompts: list[str], indices: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    text, mask = self.encode_text(prompts)
    videos, latents, below = {}, None, None
    for stage, sample in zip(self.stages, self._sample):
      config = stage.config
      channels = stage.provenance.latents[config.latents].channels
      shape = (*schema.latents_shape(config.latents), channels)
      noise = noise_for(seed, config.name, indices, shape)
      null = jnp.asarray(stage.provenance.null_embedding)
      null = jnp.broadcast_to(null, (len(prompts), *null.shape))
      low_resolution = low_noise = None
      if below is not None:
        low_resolution = stage.normalise(latents, config.low_resolution)
        low_noise = noise_for(seed, f"{config.name} low resolution", indices, shape)
      normalised = sample(stage.params, noise, text, mask, null, low_resolution, low_noise)
      latents, below = stage.denormalise(normalised, config.latents), stage
      decoded = self._decode(self.vae_params, latents)
      videos[config.name] = np.asarray(jnp.clip(decoded, 0, 1), np.float32)
    return videos
