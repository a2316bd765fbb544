"""The adversarial terms of the tokenizer's loss, in a form in which one `loss_fn` trains generator and discriminator.

  L = w_g softplus(-D'(x^))                                   for the generator; D' has fixed parameters
    + softplus(-D(x)) + softplus(D(x~))                       for the discriminator; x~ is x^ without its gradient
    + w_l LeCAM(D(x), D(x~)) + w_r R1(D, x)

Generator and discriminator use the same reconstruction x^; D'(x^) and D(x~) have the same values and XLA computes
them once. State that is not trained (a count, LeCAM's averages) is a separate variable collection, see `Running`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.partitioning import variable_with_axes
from jaxtyping import Array

from walt_t5x.types import Params, Video
from walt_t5x.vae import losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
  """Weights and schedule of the adversarial terms; the defaults are MAGVIT-v2's.

  Attributes:
    weight: w_g.
    adaptive: multiply w_g by |dL_pixels / dx^| / |dL_g / dx^|, so that both gradients have equal norms (times w_g).
      Assumption: fixed. The ratio is of gradients at the reconstruction; VQGAN takes them at the last layer's weights.
    max_adaptive: largest ratio.
    lecam_weight: w_l.
    lecam_decay: decay of LeCAM's averages.
    r1_weight: w_r, for the mean over clips of the squared gradient norm at pixels in [0, 1].
    r1_every: R1 is computed every this many steps, with its weight multiplied by the same number. Assumption: 16, as
      in StyleGAN2.
    start_step: before this step the adversarial terms are off and the discriminator does not change.
      Assumption: 0.
    num_microbatches: the trainer's: the loss is evaluated this many times per step.
  """

  weight: float = 0.1
  adaptive: bool = False
  max_adaptive: float = 1e4
  lecam_weight: float = 0.001
  lecam_decay: float = losses.LECAM_DECAY
  r1_weight: float = 10.0
  r1_every: int = 16
  start_step: int = 0
  num_microbatches: int | None = None

  def __post_init__(self):
    if self.r1_every < 1:
      raise ValueError(
        f"AdversarialSettings: got r1_every={self.r1_every}, expected at least 1; r1_weight = 0 turns R1 off."
      )


class Running(nn.Module):
  """The state that the loss replaces: the collection "running", which both engines hold in `flax_mutables`.

  `count` is the number of evaluations of the loss, one per microbatch; `lecam_real` and `lecam_fake` are averages of
  batch-mean logits, initially 0.
  """

  @nn.compact
  def __call__(self) -> None:
    dtypes = {"count": jnp.int32, "lecam_real": jnp.float32, "lecam_fake": jnp.float32}
    for name, dtype in dtypes.items():
      variable_with_axes("running", name, jnp.zeros, (), dtype, axes=(), module=self)


def adversarial_loss(
  discriminate: Callable[[Params, Video], Array],
  params: Params,
  running: Mapping[str, Array],
  *,
  real: Video,
  fake: Video,
  pixel_loss: Callable[[Video], Array],
  settings: AdversarialSettings,
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
  """The sum of the terms above, values to log, and the next values of `running`.

  Args:
    discriminate: (parameters, clips) -> one logit per clip.
    params: the discriminator's parameters.
    running: values of `Running`.
    real: clips.
    fake: their reconstructions, with the generator's gradient.
    pixel_loss: the other loss of a reconstruction, for the ratio of the adaptive weight.
  """
  fixed = jax.lax.stop_gradient
  step, fake_still = running["count"] // (settings.num_microbatches or 1), fixed(fake)

  # Generator: the gradient passes through the discriminator to the pixels, not into its parameters.
  def generator(clips: Video) -> Array:
    return losses.generator_loss(discriminate(fixed(params), clips))

  # n R1 at every n-th step and 0 between: the mean over steps is R1.
  def penalty() -> Array:
    _, gradients = losses.logit_gradients(lambda clips: discriminate(params, clips), real)
    return settings.r1_every * losses.r1_penalty(gradients)

  def active() -> tuple[Array, dict[str, Array], losses.LecamState]:
    weight = jnp.float32(settings.weight)
    if settings.adaptive:
      pull, push = jax.grad(pixel_loss)(fake_still), jax.grad(generator)(fake_still)
      ratio = optax.global_norm(pull) / jnp.maximum(optax.global_norm(push), 1e-12)
      weight = weight * jnp.minimum(fixed(ratio), settings.max_adaptive)
    generator_value = generator(fake)

    # Discriminator: the gradient does not reach the reconstruction.
    real_logits = discriminate(params, real)
    fake_logits = discriminate(params, fake_still)
    discriminator_value = losses.discriminator_loss(real_logits, fake_logits)
    lecam, updated = losses.lecam_loss(
      real_logits, fake_logits, averages, decay=settings.lecam_decay
    )
    if settings.r1_weight == 0:
      r1 = jnp.float32(0)
    elif settings.r1_every == 1:
      r1 = penalty()
    else:
      due = jnp.mod(step, settings.r1_every) == 0
      r1 = jax.lax.cond(due, penalty, lambda: jnp.float32(0))

    loss = weight * generator_value + discriminator_value
    loss += settings.lecam_weight * lecam + settings.r1_weight * r1
    right = jnp.mean(real_logits > 0) + jnp.mean(fake_logits < 0)
    logged = {
      "generator": generator_value,
      "discriminator": discriminator_value,
      "weight": weight,
      "lecam": lecam,
      "r1": r1,
      "logit_real": jnp.mean(real_logits),
      "logit_fake": jnp.mean(fake_logits),
      "accuracy": right / 2,
    }
    return loss, logged, fixed(updated)

  def waiting() -> tuple[Array, dict[str, Array], losses.LecamState]:
    loss, logged, _ = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(active)
    )
    return loss, logged, averages

  averages = losses.LecamState(real=running["lecam_real"], fake=running["lecam_fake"])
  if settings.start_step > 0:
    loss, logged, averages = jax.lax.cond(step >= settings.start_step, active, waiting)
  else:
    loss, logged, averages = active()
  return (
    loss,
    logged,
    {
      "count": running["count"] + 1,
      "lecam_real": averages.real,
      "lecam_fake": averages.fake,
    },
  )
