"""The denoiser as a trainable model: noise, self-conditioning, dropped conditions, loss and metrics (Eq. 2)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data.corpus import CorpusConstants
from walt_t5x import engine
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.diffusion.process import Prediction, add_noise, squared_errors, to_x0_and_noise
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.engine.trainable import trained_alone, with_frozen
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models.denoiser_inputs import drop, from_batch, unpack_and_normalize
from walt_t5x.models.sampling import SamplerConfig, sample_latents
from walt_t5x.types import Batch, Params

NUM_NOISE_BUCKETS = 4
ROWS = ("mixed", "videos", "images")


def key_of(latents: Array) -> Array:
  """A random key from the bits of the latents."""
  bits = jax.lax.bitcast_convert_type(latents.astype(jnp.float32), jnp.uint32)
  return jax.random.key(jnp.sum(bits, dtype=jnp.uint32))


class DenoiserModel(engine.BaseModel):
  """One diffusion stage: base, class-conditional, frame-prediction or super-resolution, depending on its module."""

  def __init__(
    self,
    *,
    module: WaltDenoiser,
    optimizer_def: Any,
    schedule: NoiseSchedule | None = None,
    prediction: str = "v",
    self_conditioning_probability: float = 0.9,
    drop_probability: float = 0.1,
    frame_prediction_probability: float = 0.25,
    frame_prediction_counts: Sequence[int] = (1, 2),
    max_low_resolution_noise: float = 0.3,
    sampling_low_resolution_noise: float = 0.15,
    rows: str = "mixed",
    continuous_time: bool = False,
    trainable: Sequence[str] | None = None,
    sampler: SamplerConfig | None = None,
    corpus: Callable[[], CorpusConstants] | None = None,
  ):
    """Keeps the network and the settings of its training.

    Args:
      module: the network.
      optimizer_def: an engine optimizer, e.g. `engine.OptaxWrapper`.
      schedule: noise schedule; the paper's by default.
      prediction: "v" (the paper's), "x0" or "epsilon".
      self_conditioning_probability: p_sc; probability that an example's first-pass estimate is fed back instead of
        zeros.
      drop_probability: fraction of captions and labels dropped for guidance. Assumption: 0.1.
      frame_prediction_probability: p_fp; fraction of videos with conditioning frames. Assumption: 0.25.
      frame_prediction_counts: numbers of their latent frames, drawn uniformly. Assumption: 1 or 2; frame prediction on
        Kinetics-600 conditions every video on 2 (5 pixel frames).
      max_low_resolution_noise: t_max_noise of the noise augmentation in [0, 1]. Assumption: 0.3.
      sampling_low_resolution_noise: t_sr when sampling. Assumption: 0.15.
      rows: "mixed" if batches hold videos and stacks of images; "videos" or "images" if they hold one kind only, which
        the compiled step then need not distinguish.
      continuous_time: draw a real t in (0, num_steps] instead of an integer step.
      trainable: regular expressions, searched in the names of the parameters that are trained, such as
        `pairs_0/spatial/attention/query/kernel`; the others keep their values. None trains all.
      sampler: how `predict_batch` samples.
      corpus: reads the constants of the training data at the first batch; not needed for batches that are normalized
        and have no text to drop, nor to sample.

    Raises:
      ValueError: `rows` is unknown, or a count of frames is below 1.
    """
    if trainable is not None and optimizer_def is not None:
      optimizer_def = trained_alone(optimizer_def, trainable)
    super().__init__(optimizer_def)
    self.trainable = trainable
    self.module = module
    self.schedule = schedule or NoiseSchedule()
    self.prediction = Prediction(prediction)
    self.self_conditioning_probability = self_conditioning_probability
    self.drop_probability = drop_probability
    self.frame_prediction_probability = frame_prediction_probability
    self.frame_prediction_counts = tuple(frame_prediction_counts)
    if not self.frame_prediction_counts or min(self.frame_prediction_counts) < 1:
      raise ValueError(
        f"DenoiserModel.{frame_prediction_counts=}: expected complete numbers from 1"
      )
    if rows not in ROWS:
      raise ValueError(f"DenoiserModel.{rows=}: expected one of {ROWS}")
    self.rows = rows
    self.continuous_time = continuous_time
    self.max_low_resolution_noise = max_low_resolution_noise
    self.sampling_low_resolution_noise = sampling_low_resolution_noise
    self.sampler = sampler or SamplerConfig()
    self.corpus = corpus

  def _constants(self) -> CorpusConstants:
    """Constants of the training data, checked against the network."""
    found = self.corpus() if self.corpus is not None else CorpusConstants()
    width = self.module.text_dim
    if width and found.null_text is not None and found.null_text.shape[-1] != width:
      raise Mismatch(
        f"text embeddings of the cache have width {found.null_text.shape[-1]}, expected the denoiser's "
        f"text_dim={width}; train on a cache of that text encoder, or set WaltDenoiser.text_dim"
      )
    rows, classes = self.module.num_classes, found.num_classes
    if rows and classes == 0:
      raise Mismatch(
        f"the cache has no labels, expected those of WaltDenoiser.num_classes={rows}; preprocess rows with a label or "
        "class, or set num_classes = 0"
      )
    if rows and classes is not None and classes > rows:
      raise Mismatch(
        f"the labels of the cache reach {classes - 1}, expected less than WaltDenoiser.num_classes={rows}; set it to "
        f"{classes}"
      )
    return found

  @property
  def FEATURE_CONVERTER_CLS(self):
    """The converter for the features that this module reads; both engines call it with `pack` and other arguments."""
    # SeqIO takes seconds to import, and sampling needs none.
    from data.feature_converters import DenoiserFeatureConverter

    return functools.partial(
      DenoiserFeatureConverter,
      text_dim=self.module.text_dim,
      label=self.module.num_classes > 0,
      low_resolution=self.module.low_resolution_scale > 0,
    )

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ):
    """Initializes parameters and their logical axes from the shapes of a batch."""
    types = input_types or {}
    batch = {n: jnp.zeros(shape, types.get(n, jnp.float32)) for n, shape in input_shapes.items()}
    for name in ("latents", "low_resolution"):
      if name in batch:
        batch[name] = batch[name].astype(jnp.float32)
    batch = unpack_and_normalize(batch, {})
    rows = batch["latents"].shape[0]
    conditioning = self._with_low_resolution_noise(
      self.conditioning(batch), jax.random.key(0), jnp.zeros((rows,))
    )
    if self.module.guidance_range is not None:
      conditioning = dataclasses.replace(conditioning, guidance=jnp.ones((rows,)))
    return self.module.init(
      rng, batch["latents"].astype(jnp.float32), jnp.ones((rows,)), None, conditioning
    )

  @property
  def branches(self) -> int:
    """Predictions that guidance combines: one without it, and one if its scale is an input of the network."""
    if self.sampler.guidance is None or self.module.guidance_range is not None:
      return 1
    return 2 if self.sampler.frame_guidance is None else 3

  def conditioning(self, batch: Batch) -> Conditioning:
    """The batch's conditioning, by kind of example; random parts are added later."""
    conditioning = from_batch(batch)
    if self.rows == "mixed":
      return conditioning
    return dataclasses.replace(conditioning, is_image=None, all_images=self.rows == "images")

  def low_resolution_noised(
    self, conditioning: Conditioning, noise: Array, *, time: Array
  ) -> Conditioning:
    """Adds noise to the low-resolution latents (noise conditioning augmentation, Section 4.5).

    The noise comes before the learned upsampling, whose gain would otherwise set the ratio of signal to noise.

    Args:
      conditioning: conditioning with the clean low-resolution latents; without them it is returned as it is.
      noise: standard normal, in the shape of the low-resolution latents [B, t, h / s, w / s, c].
      time: t_sr in [0, 1] of each example [B].
    """
    if conditioning.low_resolution is None:
      return conditioning
    steps = time * self.schedule.num_steps
    noised = add_noise(
      conditioning.low_resolution.astype(jnp.float32), noise, self.schedule.gamma(steps)
    )
    return dataclasses.replace(conditioning, low_resolution=noised, low_resolution_steps=steps)

  def _with_low_resolution_noise(
    self, conditioning: Conditioning, rng: Array, time: Array
  ) -> Conditioning:
    low = conditioning.low_resolution
    noise = jax.random.normal(rng, () if low is None else low.shape)
    return self.low_resolution_noised(conditioning, noise, time=time)

  def _with_past_frames(
    self, conditioning: Conditioning, rng: Array, latents: Array
  ) -> Conditioning:
    """Gives the first clean latent frames to a fraction p_fp of the videos (Section 4.4)."""
    if not self.module.frame_prediction:
      return conditioning
    rows, frames = latents.shape[:2]
    if max(self.frame_prediction_counts) >= frames:
      raise ValueError(
        f"DenoiserModel.frame_prediction_counts={self.frame_prediction_counts}: expected fewer than the {frames} "
        "latent frames of an example"
      )
    rng_chosen, rng_count = jax.random.split(rng)
    chosen = jax.random.bernoulli(rng_chosen, self.frame_prediction_probability, (rows,))
    if conditioning.is_image is not None:
      chosen = chosen & ~conditioning.is_image
    elif conditioning.all_images:
      chosen = jnp.zeros_like(chosen)
    counts = jax.random.choice(rng_count, jnp.array(self.frame_prediction_counts), (rows,))
    count = jnp.where(chosen, counts, 0)
    return dataclasses.replace(
      conditioning,
      frames=latents,
      frame_mask=(jnp.arange(frames) < count[:, None]).astype(jnp.float32),
    )

  def _training_conditioning(
    self, batch: Batch, latents: Array, rng: Array, *, null_text: np.ndarray | None
  ) -> Conditioning:
    rngs = jax.random.split(rng, 4)
    rows = latents.shape[0]
    time = self.max_low_resolution_noise * jax.random.uniform(rngs[0], (rows,))
    conditioning = self._with_low_resolution_noise(self.conditioning(batch), rngs[1], time)
    conditioning = self._with_past_frames(conditioning, rngs[2], latents)
    slots = next((batch[k].shape[1] for k in ("text", "label") if k in batch), 1)
    probability = self.drop_probability
    dropped = jax.random.bernoulli(rngs[3], probability, (rows, slots))
    # Independent: guidance with a separate scale for frames evaluates frames without text.
    frames = jax.random.bernoulli(jax.random.fold_in(rngs[3], 1), probability, (rows,))
    return drop(conditioning, dropped, frames=frames, null_text=null_text)

  def _draw_steps(self, rng: Array, rows: int) -> Array:
    """Diffusion times of a batch, uniform over 1 .. K, or over (0, K] in continuous time."""
    if self.continuous_time:
      return self.schedule.num_steps * (1 - jax.random.uniform(rng, (rows,)))
    return jax.random.randint(rng, (rows,), 1, self.schedule.num_steps + 1)

  def _stratified_steps(self, rng: Array, rows: int) -> Array:
    """Diffusion times as of `_draw_steps`, one in each of `rows` equal intervals: their mean varies less."""
    rng_order, rng_place = jax.random.split(rng)
    place = jax.random.permutation(rng_order, rows) + 1 - jax.random.uniform(rng_place, (rows,))
    steps = self.schedule.num_steps * place / rows
    return steps if self.continuous_time else jnp.ceil(steps).astype(jnp.int32)

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    """Mean squared error of the prediction (Eq. 2), and metrics by kind of example and by noise level.

    Args:
      batch: the features of `DenoiserFeatureConverter`, or the output of `unpack_and_normalize` for them.
      dropout_rng: key of the step; None evaluates. The draws then depend on nothing but the batch's latents: the same
        for every checkpoint, others for every batch. Times are stratified.
    """
    if self.trainable is not None:
      params = with_frozen(params, self.trainable)
    constants = self._constants()
    draw_steps = self._draw_steps if dropout_rng is not None else self._stratified_steps
    rng = key_of(batch["latents"]) if dropout_rng is None else dropout_rng
    batch = unpack_and_normalize(batch, constants.moments)
    rng_steps, rng_noise, rng_condition, rng_self = jax.random.split(rng, 4)
    latents = batch["latents"].astype(jnp.float32)
    rows = latents.shape[0]
    steps = draw_steps(rng_steps, rows)
    gamma = self.schedule.gamma(steps)
    noise = jax.random.normal(rng_noise, latents.shape)
    x_t = add_noise(latents, noise, gamma)
    conditioning = self._training_conditioning(
      batch, latents, rng_condition, null_text=constants.null_text
    )

    def predict(self_condition: Array | None) -> Array:
      output = self.module.apply({"params": params}, x_t, steps, self_condition, conditioning)
      return cast(Array, output)

    self_condition = None
    if self.module.self_conditioning and self.self_conditioning_probability > 0:
      first, _ = to_x0_and_noise(self.prediction, predict(None), x_t=x_t, gamma=gamma)
      chosen = jax.random.bernoulli(
        rng_self, self.self_conditioning_probability, (rows, 1, 1, 1, 1)
      )
      self_condition = jnp.where(chosen, jax.lax.stop_gradient(first), 0.0)

    errors = squared_errors(
      self.prediction, predict(self_condition), x0=latents, noise=noise, gamma=gamma
    )
    return jnp.mean(errors), self._metrics(errors, steps, conditioning.is_image)

  def _metrics(
    self, errors: Array, steps: Array, is_image: Array | None
  ) -> dict[str, clu.metrics.Metric]:
    """Averages of the errors [B]: all, by kind of example, and by quarter of the diffusion time; rates of the kinds."""
    ones = jnp.ones_like(errors)

    def average(values: Array, weights: Array) -> clu.metrics.Average:
      # CLU's `from_model_output` counts in int32, which takes an all-reduce in addition to that of the float32 sums.
      return clu.metrics.Average(  # CLU's fields are invisible to pyright: it imports flax.struct by `import flax`.
        total=jnp.sum(values * weights),  # pyright: ignore[reportCallIssue]
        count=jnp.sum(weights),  # pyright: ignore[reportCallIssue]
      )

    metrics: dict[str, clu.metrics.Metric] = {"loss": average(errors, ones)}
    if is_image is not None:
      for name, kind in (("image", is_image), ("video", ~is_image)):
        weights = kind.astype(jnp.float32)
        metrics[f"loss_{name}"] = average(errors, weights)
        # The mixture's measured rates: fractions of the examples since the last summary.
        metrics[f"rate_{name}"] = average(weights, ones)
    complete = jnp.ceil(steps).astype(jnp.int32)
    bucket = (complete - 1) * NUM_NOISE_BUCKETS // self.schedule.num_steps
    for i in range(NUM_NOISE_BUCKETS):
      metrics[f"loss_noise_{i + 1}_of_{NUM_NOISE_BUCKETS}"] = average(
        errors, (bucket == i).astype(jnp.float32)
      )
    return metrics

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Array | None = None, **unused
  ) -> tuple[Array, dict[str, Array]]:
    """Samples normalized latents [B, t, h, w, c] for the batch's conditions."""
    constants = self._constants()
    batch = unpack_and_normalize(batch, constants.moments)
    rng_noise, rng_low = jax.random.split(jax.random.key(0) if rng is None else rng)
    shape = batch["latents"].shape
    noise = jax.random.normal(rng_noise, shape)
    time = jnp.full((shape[0],), self.sampling_low_resolution_noise)
    conditioning = self._with_low_resolution_noise(self.conditioning(batch), rng_low, time)
    return self.sample(params, noise, conditioning, null_text=constants.null_text), {}

  def predict_batch(self, params: Params, batch: Batch, rng: Array | None = None) -> Array:
    """The samples of `predict_batch_with_aux`."""
    return self.predict_batch_with_aux(params, batch, rng)[0]

  def sample(
    self,
    params: Params,
    noise: Array,
    conditioning: Conditioning,
    *,
    null_text: Array | np.ndarray | None = None,
  ) -> Array:
    """Samples from standard normal `noise` [B, t, h, w, c]; the unconditional branch drops text, class and frames."""
    unconditional = None
    if self.branches > 1:
      slots = next(
        (x.shape[1] for x in (conditioning.text, conditioning.labels) if x is not None), 1
      )
      rows = noise.shape[0]
      unconditional = drop(
        conditioning,
        jnp.ones((rows, slots), bool),
        frames=jnp.ones((rows,), bool),
        null_text=null_text,
      )
    return sample_latents(
      self.module,
      params,
      noise,
      conditioning=conditioning,
      unconditional=unconditional,
      schedule=self.schedule,
      prediction=self.prediction,
      config=self.sampler,
    )

  def score_batch(self, params: Params, batch: Batch, return_intermediates: bool = False) -> Array:
    """Negative loss of each batch with fixed draws, [B] filled with the batch's mean (T5X's interface)."""
    loss, _ = self.loss_fn(params, batch, None)
    return jnp.full((batch["latents"].shape[0],), -loss)
