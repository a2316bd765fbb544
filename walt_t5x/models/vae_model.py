"""The tokenizer as an engine trains it: reconstruction loss, KL where the posterior is Gaussian, and PSNR."""

from collections.abc import Mapping
from typing import Any

import clu.metrics
import jax.numpy as jnp
from jaxtyping import Array

from data.feature_converters import VaeFeatureConverter
from walt_t5x import engine
from walt_t5x.types import Batch, Params
from walt_t5x.vae.autoencoder import CausalVae


class VaeModel(engine.BaseModel):
  """The causal autoencoder; its parameters stand under "vae", which leaves room for a discriminator beside them."""

  FEATURE_CONVERTER_CLS = VaeFeatureConverter

  def __init__(
    self,
    *,
    module: CausalVae,
    optimizer_def: Any,
    reconstruction_weight: float = 5.0,
    kl_weight: float = 1e-6,
  ):
    """Args:

    module: the autoencoder.
    optimizer_def: an engine optimizer.
    reconstruction_weight: of the mean squared pixel error (MAGVIT-v2's 5.0).
    kl_weight: of the KL term per latent value when the posterior is Gaussian. Assumption: 1e-6.
    """
    super().__init__(optimizer_def)
    self.module = module
    self.reconstruction_weight = reconstruction_weight
    self.kl_weight = kl_weight

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ):
    """Initialises parameters and their logical axes from the shape of `video`."""
    variables = self.module.init(rng, jnp.zeros(input_shapes["video"], jnp.float32))
    return {collection: {"vae": tree} for collection, tree in variables.items()}

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    """Reconstruction and KL.

    Args:
      params: {"vae": ...}.
      batch: `video` uint8 [B, T, H, W, 3].
      dropout_rng: draws the posterior sample; None decodes the mean.
    """
    video = batch["video"].astype(jnp.float32) / 255
    key = dropout_rng if self.module.posterior == "gaussian" else None
    reconstruction, posterior = self.module.apply({"params": params["vae"]}, video, key)
    errors = jnp.mean(jnp.square(reconstruction.astype(jnp.float32) - video), axis=(1, 2, 3, 4))
    loss = self.reconstruction_weight * jnp.mean(errors)
    metrics = {"mse": _average(errors), "psnr": _average(psnr(errors))}
    if self.module.posterior == "gaussian":
      kl = posterior.kl()
      loss += self.kl_weight * jnp.mean(kl)
      metrics["kl"] = _average(kl)
    latents = posterior.mean.astype(jnp.float32)
    metrics["latent_std"] = clu.metrics.Average(total=jnp.std(latents), count=jnp.float32(1))
    metrics["loss"] = clu.metrics.Average(total=loss, count=jnp.float32(1))
    return loss, metrics

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Array | None = None, **unused
  ) -> tuple[Array, dict[str, Array]]:
    """Reconstructions [B, T, H, W, 3] in [0, 1]."""
    video = batch["video"].astype(jnp.float32) / 255
    reconstruction, _ = self.module.apply({"params": params["vae"]}, video)
    return jnp.clip(reconstruction, 0, 1), {}

  def predict_batch(self, params: Params, batch: Batch, rng: Array | None = None) -> Array:
    """The reconstructions of `predict_batch_with_aux`."""
    return self.predict_batch_with_aux(params, batch, rng)[0]

  def score_batch(self, params: Params, batch: Batch, return_intermediates: bool = False) -> Array:
    """PSNR of each row [B], in dB."""
    video = batch["video"].astype(jnp.float32) / 255
    return psnr(jnp.mean(jnp.square(self.predict_batch(params, batch) - video), axis=(1, 2, 3, 4)))


def psnr(mean_squared_error: Array) -> Array:
  """10 log10(1 / mse) in dB, for pixels in [0, 1]; capped at 100."""
  return -10 * jnp.log10(jnp.maximum(mean_squared_error, 1e-10))


def _average(values: Array) -> clu.metrics.Average:
  return clu.metrics.Average(total=jnp.sum(values), count=jnp.float32(values.size))
