"""The tokenizer as a trainable model: pixel, KL, perceptual and adversarial terms in one loss, and metrics."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import clu.metrics
import flax.core
import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array

from walt_t5x import engine
from walt_t5x.media.pixels import to_float
from walt_t5x.metrics.pixel_distances import RADIUS, psnr, psnr_of_error, ssim
from walt_t5x.models.adversarial import AdversarialSettings, Running, adversarial_loss
from walt_t5x.types import Batch, Params
from walt_t5x.vae.autoencoder import CausalVae, Posterior
from walt_t5x.vae.discriminator import Discriminator

average = clu.metrics.Average.from_model_output

# (parameters are constants of the callable and need no gradient) reconstruction, video -> one loss per clip [B].
PerceptualLoss = Callable[[Array, Array], Array]


class VaeModel(engine.BaseModel):
  """The causal autoencoder as "vae" and, with adversarial training, a "discriminator".

  With a discriminator the model has the collection "running" (`models.adversarial.Running`), which the loss takes and
  returns, in T5X's form for models with `flax_mutables`.
  """

  def __init__(
    self,
    *,
    module: CausalVae,
    optimizer_def: Any,
    reconstruction_weight: float = 5.0,
    kl_weight: float = 1e-6,
    perceptual: PerceptualLoss | None = None,
    perceptual_weight: float = 0.1,
    discriminator: Discriminator | None = None,
    adversarial: AdversarialSettings | None = None,
  ):
    """Keeps the autoencoder, the discriminator and the weights of the loss.

    Args:
      optimizer_def: an engine optimizer; with a discriminator, one that trains the parts separately
        (`engine.optimizers.by_part`).
      reconstruction_weight: weight of the mean squared pixel error (MAGVIT-v2's 5.0).
      kl_weight: weight of the KL term per latent value if the posterior is Gaussian. Assumption: 1e-6.
      perceptual: distance of features (`vae.perceptual`); None disables the term and logs a warning.
      perceptual_weight: weight of the perceptual term (MAGVIT-v2's 0.1).
      discriminator: the discriminator; None disables adversarial training.
      adversarial: weights and schedule of the adversarial terms; None for the published ones.
    """
    super().__init__(optimizer_def)
    self.module = module
    self.reconstruction_weight = reconstruction_weight
    self.kl_weight = kl_weight
    self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
    self.discriminator = discriminator
    self.adversarial = adversarial or AdversarialSettings()
    if perceptual is None and perceptual_weight:
      logging.info(
        "VaeModel: no perceptual term, because no weights are given; see docs/vae.md for where to get them."
      )

  @property
  def FEATURE_CONVERTER_CLS(self):
    """The converter for clips of pixels."""
    # SeqIO takes seconds to import, and sampling needs none.
    from data.feature_converters import VaeFeatureConverter

    return VaeFeatureConverter

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ):
    """Initializes parameters and their logical axes from the shape of `video`."""
    video = jnp.zeros(input_shapes["video"], jnp.float32)
    parts = {"vae": self.module.init(rng, video)}
    running = {}
    if self.discriminator is not None:
      parts["discriminator"] = self.discriminator.init(jax.random.fold_in(rng, 1), video)
      running = Running().init(rng)
    return {
      collection: {name: variables[collection] for name, variables in parts.items()}
      for collection in ("params", "params_axes")
    } | dict(running)

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: Mapping[str, Any] | None = None,
  ) -> tuple[Array, Any]:
    """The sum of all terms, and metrics; with a discriminator, metrics and the next `flax_mutables`.

    Args:
      params: {"vae", and with a discriminator "discriminator"}.
      batch: `video` uint8 [B, T, H, W, 3].
      dropout_rng: key to sample the posterior; None decodes the mean.
      flax_mutables: {"running"}, with a discriminator.
    """
    loss, metrics, running, _ = self._loss(params, batch, dropout_rng, flax_mutables)
    if running is None:
      return loss, metrics
    return loss, (metrics, flax.core.freeze({"running": running}))

  def eval_fn(
    self, params: Params, batch: Batch, flax_mutables: Mapping[str, Any] | None = None
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    """The deterministic loss, and SSIM if the frames are large enough."""
    loss, metrics, _, reconstruction = self._loss(params, batch, None, flax_mutables)
    if min(reconstruction.shape[2:4]) > 2 * RADIUS:
      metrics["ssim"] = average(ssim(jnp.clip(reconstruction, 0, 1), _pixels(batch)))
    return loss, metrics

  def _loss(
    self,
    params: Params,
    batch: Batch,
    key: Array | None,
    flax_mutables: Mapping[str, Any] | None,
  ) -> tuple[Array, dict[str, clu.metrics.Metric], dict[str, Array] | None, Array]:
    video = _pixels(batch)
    gaussian = self.module.posterior == "gaussian"
    output = self.module.apply({"params": params["vae"]}, video, key if gaussian else None)
    reconstruction, posterior = cast(tuple[Array, Posterior], output)
    reconstruction = reconstruction.astype(jnp.float32)
    loss, metrics = self._pixel_loss(reconstruction, video)
    if gaussian:
      kl = posterior.kl()
      loss += self.kl_weight * jnp.mean(kl)
      metrics["kl"] = average(kl)
    running = None
    if self.discriminator is not None:
      assert flax_mutables is not None, "a model with a discriminator needs its collection running"
      discriminator = self.discriminator
      term, logged, running = adversarial_loss(
        lambda p, clips: cast(Array, discriminator.apply({"params": p}, clips)),
        params["discriminator"],
        flax_mutables["running"],
        real=video,
        fake=reconstruction,
        pixel_loss=lambda clips: self._pixel_loss(clips, video)[0],
        settings=self.adversarial,
      )
      loss += term
      metrics |= {f"adversarial/{name}": average(value) for name, value in logged.items()}
    metrics["latent_std"] = average(jnp.std(posterior.mean.astype(jnp.float32)))
    metrics["loss"] = average(loss)
    return loss, metrics, running, reconstruction

  def _pixel_loss(
    self, reconstruction: Array, video: Array
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    """The terms that depend only on the pixels: squared error and perceptual distance."""
    errors = jnp.mean(jnp.square(reconstruction - video), axis=(1, 2, 3, 4))
    loss = self.reconstruction_weight * jnp.mean(errors)
    metrics: dict[str, clu.metrics.Metric] = {
      "mse": average(errors),
      "psnr": average(psnr_of_error(errors)),
    }
    if self.perceptual is not None:
      distances = self.perceptual(reconstruction, video)
      loss += self.perceptual_weight * jnp.mean(distances)
      metrics["perceptual"] = average(distances)
    return loss, metrics

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Array | None = None, **unused
  ) -> tuple[Array, dict[str, Array]]:
    """Reconstructions [B, T, H, W, 3] in [0, 1]."""
    reconstruction, _ = self.module.apply({"params": params["vae"]}, _pixels(batch))
    return jnp.clip(reconstruction.astype(jnp.float32), 0, 1), {}

  def score_batch(self, params: Params, batch: Batch, return_intermediates: bool = False) -> Array:
    """PSNR of each example [B], in dB."""
    return psnr(self.predict_batch(params, batch), _pixels(batch))


def _pixels(batch: Batch) -> Array:
  return to_float(batch["video"])
