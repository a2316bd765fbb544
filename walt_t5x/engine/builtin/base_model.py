"""The interface of a trainable model, the same as T5X's."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax


class BaseModel(abc.ABC):
  """A Flax module with its loss, its prediction and its optimizer.

  A model may have state that is not trained: further collections of `get_initial_variables`, each with its axes. Its
  `loss_fn` then takes them as a fourth argument, `flax_mutables`, and returns `(loss, (metrics, flax_mutables))`; its
  `eval_fn` takes them as a third argument.

  `FEATURE_CONVERTER_CLS` is the `seqio.FeatureConverter` class that turns task features into a batch; `optimizer_def`
  is an `OptaxWrapper`.
  """

  FEATURE_CONVERTER_CLS: Callable[..., Any]

  def __init__(self, optimizer_def: Any):
    self.optimizer_def = optimizer_def

  @abc.abstractmethod
  def loss_fn(
    self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The scalar loss to minimize, a mean over examples, and `clu.metrics.Metric`s, merged over microbatches and steps.

    Args:
      params: the parameter tree.
      batch: name -> array, batch axis first.
      dropout_rng: key of this step, or None if the loss must be deterministic.
    """

  def eval_fn(
    self, params: Any, batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The deterministic loss and metrics of an evaluation batch."""
    return self.loss_fn(params, batch, None)

  def predict_batch(
    self, params: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
  ) -> Any:
    """Predictions for a batch."""
    return self.predict_batch_with_aux(params, batch, rng)[0]

  @abc.abstractmethod
  def predict_batch_with_aux(
    self, params: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
  ) -> tuple[Any, Mapping[str, Any]]:
    """Predictions for a batch and auxiliary outputs."""

  @abc.abstractmethod
  def score_batch(
    self, params: Any, batch: Mapping[str, jax.Array], return_intermediates: bool = False
  ) -> Any:
    """One score per example."""

  @abc.abstractmethod
  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, Any]:
    """`{'params': ..., 'params_axes': ...}` for batches of these shapes and types, and other collections likewise."""
