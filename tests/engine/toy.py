"""A linear regression, a SeqIO task with a few examples, and a gin file: the smallest model that the engine trains."""

import functools
import sys
import time
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning

from walt_t5x.engine import BaseModel, get_dataset

ROWS, WIDTH = 24, 4


def _row(i: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(i)
  x = rng.normal(size=WIDTH).astype(np.float32)
  return {"x": x, "y": np.array([x.sum() + 0.1 * i], np.float32), "id": np.array([i], np.int32)}


def _rows(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
  del split, shuffle_files, seed
  rows = [_row(i) for i in range(ROWS)]
  columns = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
  # The end of an iterator in a reference cycle waits until its tuning thread wakes up, up to a minute.
  options = tf.data.Options()
  options.autotune.enabled = False
  return tf.data.Dataset.from_tensor_slices(columns).with_options(options)


FEATURES = {
  "x": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
  "y": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
  "id": seqio.ContinuousFeature(dtype=tf.int32, rank=1),
}
TASK = seqio.TaskRegistry.add(
  "engine_toy",
  source=seqio.FunctionDataSource(_rows, splits=["train", "validation"]),
  preprocessors=[],
  output_features=FEATURES,
)


def rows_that_hang(*arguments: Any, at: int = 6, **settings: Any) -> tf.data.Dataset:
  """A dataset whose reader never returns with the batch `at`, and says so."""

  def wait(index: np.ndarray) -> np.ndarray:
    if index == at:
      print("the reader hangs", file=sys.stderr, flush=True)
      time.sleep(600)
    return index

  def read(index: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    with tf.control_dependencies([tf.py_function(wait, [index], tf.int64)]):
      return {name: tf.identity(value) for name, value in batch.items()}

  return get_dataset(*arguments, **settings).enumerate().map(read)


class ToyConverter(seqio.FeatureConverter):
  """Examples unchanged, without SeqIO's checks of their lengths, whose translation takes a third of a short run."""

  TASK_FEATURES: ClassVar = {
    k: seqio.FeatureConverter.FeatureSpec(v.dtype, rank=1) for k, v in FEATURES.items()
  }
  MODEL_FEATURES = TASK_FEATURES
  PACKING_FEATURE_DTYPES = None

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Any) -> tf.data.Dataset:
    @tf.autograph.experimental.do_not_convert
    def fix(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      return {k: tf.ensure_shape(row[k], [task_feature_lengths[k]]) for k in FEATURES}

    return ds.map(fix)

  def _validate_dataset(self, ds: tf.data.Dataset, *_: Any, **__: Any) -> tf.data.Dataset:
    return ds

  def get_model_feature_lengths(self, task_feature_lengths: Any) -> Any:
    return task_feature_lengths


class Linear(nn.Module):
  """y = x A b: two matrices, so that one has an 'mlp' axis to shard."""

  width: int = 8

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.normal(0.3)
    param = functools.partial(flax_partitioning.param_with_axes, module=self)
    a = param("kernel", init, (WIDTH, self.width), jnp.float32, axes=("embed", "mlp"))
    b = param("out_kernel", init, (self.width, 1), jnp.float32, axes=("mlp", "unmodeled"))
    bias = param("bias", nn.initializers.zeros, (1,), jnp.float32, axes=("unmodeled",))
    return x @ a @ b + bias


class ToyModel(BaseModel):
  """Mean squared error. The metric `ids` is a fingerprint of the examples seen, for tests of their order."""

  FEATURE_CONVERTER_CLS = ToyConverter

  def __init__(self, optimizer_def: Any, width: int = 8, noise: float = 0.0):
    super().__init__(optimizer_def)
    self.module, self.noise = Linear(width), noise

  def loss_fn(self, params: Any, batch: Any, dropout_rng: Any) -> Any:
    x = batch["x"]
    if self.noise and dropout_rng is not None:
      x = x + self.noise * jax.random.normal(dropout_rng, x.shape)
    error = jnp.square(self.module.apply({"params": params}, x) - batch["y"]).mean(-1)
    ids = batch["id"].astype(jnp.float32)
    metrics = {
      "loss": clu_metrics.Average.from_model_output(error),
      "ids": clu_metrics.Average.from_model_output(jnp.square(ids).reshape(-1)),
    }
    return error.mean(), metrics

  def predict_batch_with_aux(self, params: Any, batch: Any, rng: Any = None) -> Any:
    return self.module.apply({"params": params}, batch["x"]), {}

  def score_batch(self, params: Any, batch: Any, return_intermediates: bool = False) -> Any:
    return -self.loss_fn(params, batch, None)[0]

  def get_initial_variables(self, rng: Any, input_shapes: Any, input_types: Any = None) -> Any:
    return self.module.init(rng, jnp.zeros(input_shapes["x"]))
