"""The adversarial terms of the tokenizer's loss, in a form in which one `loss_fn` trains generator and discriminator.

  L = w_g softplus(-D'(x^))                                   for the generator; D' has fixed parameters
    + softplus(-D(x)) + softplus(D(x~))                       for the discriminator; x~ is x^ without its gradient
    + w_l LeCAM(D(x), D(x~)) + w_r R1(D, x)

Generator and discriminator use the same reconstruction x^; D'(x^) and D(x~) have the same values and XLA computes
them once. Other state that changes per step (the step itself, LeCAM's averages) is stored as parameters, see `Running`.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array

from walt_t5x.engine.optimizers import ASSIGNMENT_SCALE
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
  """

  weight: float = 0.1
  adaptive: bool = False
  max_adaptive: float = 1e4
  lecam_weight: float = 0.001
  lecam_decay: float = losses.LECAM_DECAY
  r1_weight: float = 10.0
  r1_every: int = 16
  start_step: int = 0

  def __post_init__(self):
    if self.r1_every < 1:
      raise ValueError(
        f"AdversarialSettings: got r1_every={self.r1_every}, expected at least 1; r1_weight = 0 turns R1 off."
      )


class Running(nn.Module):
  """Training state other than weights, stored as parameters because engines save and shard only those.

  `step` counts updates; `lecam_real` and `lecam_fake` are averages of batch-mean logits, initially 0. The loss adds
  `assign(p, target)` for each, and `engine.optimizers.assignment` then sets p to the target.
  """

  @nn.compact
  def __call__(self) -> dict[str, Array]:
    zeros = nn.initializers.zeros_init()
    return {
      name: param_with_axes(name, zeros, (), jnp.float32, axes=(), module=self)
      for name in ("step", "lecam_real", "lecam_fake")
    }


def assign(parameter: Array, target: Array) -> Array:
  """A term of value 0 whose gradient, ASSIGNMENT_SCALE (parameter - target), makes the optimizer assign `target`.

  The scale keeps the term out of the logged gradient norm.
  """
  move = jax.lax.stop_gradient(ASSIGNMENT_SCALE * (parameter - target))
  return move * (parameter - jax.lax.stop_gradient(parameter))


def adversarial_loss(
  discriminate: Callable[[Params, Video], Array],
  params: Params,
  running: dict[str, Array],
  *,
  real: Video,
  fake: Video,
  pixel_loss: Callable[[Video], Array],
  settings: AdversarialSettings,
) -> tuple[Array, dict[str, Array]]:
  """The sum of the terms above, with the assignments of `running`, and values to log.

  Args:
    discriminate: (parameters, clips) -> one logit per clip.
    params: the discriminator's parameters.
    running: values of `Running`.
    real: clips.
    fake: their reconstructions, with the generator's gradient.
    pixel_loss: the other loss of a reconstruction, for the ratio of the adaptive weight.
  """
  fixed = jax.lax.stop_gradient
  step, fake_still = running["step"], fixed(fake)

  # Generator: the gradient passes through the discriminator to the pixels, not into its parameters.
  def generator(clips: Video) -> Array:
    return losses.generator_loss(discriminate(fixed(params), clips))

  # n R1 at every n-th step and 0 between: the mean over steps is R1.
  def penalty() -> Array:
    _, gradients = losses.logit_gradients(lambda clips: discriminate(params, clips), real)
    return settings.r1_every * losses.r1_penalty(gradients)

  def active() -> tuple[Array, dict[str, Array]]:
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
    averages = losses.LecamState(real=running["lecam_real"], fake=running["lecam_fake"])
    lecam, updated = losses.lecam_loss(
      real_logits, fake_logits, averages, decay=settings.lecam_decay
    )
    if settings.r1_weight == 0:
      r1 = jnp.float32(0)
    elif settings.r1_every == 1:
      r1 = penalty()
    else:
      due = jnp.mod(jnp.round(step), settings.r1_every) == 0
      r1 = jax.lax.cond(due, penalty, lambda: jnp.float32(0))

    loss = weight * generator_value + discriminator_value
    loss += settings.lecam_weight * lecam + settings.r1_weight * r1
    loss += assign(running["lecam_real"], updated.real)
    loss += assign(running["lecam_fake"], updated.fake)
    right = jnp.mean(real_logits > 0) + jnp.mean(fake_logits < 0)
    return loss, {
      "generator": generator_value,
      "discriminator": discriminator_value,
      "weight": weight,
      "lecam": lecam,
      "r1": r1,
      "logit_real": jnp.mean(real_logits),
      "logit_fake": jnp.mean(fake_logits),
      "accuracy": right / 2,
    }

  def waiting() -> tuple[Array, dict[str, Array]]:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(active))

  if settings.start_step > 0:
    loss, logged = jax.lax.cond(step >= settings.start_step, active, waiting)
  else:
    loss, logged = active()
  return loss + assign(step, step + 1.0), logged
