"""Evaluates a model by its predictions; replaces `seqio.Evaluator` in T5X's train.py and eval.py.

`seqio.Evaluator` decodes tokens and requires a feature called "targets"; the examples here are latents or pixels. The
metrics that are always reported need no other network, so they detect a broken model but make no finer distinction. A
task's `metric_fns` are added to them; published numbers come from `walt_t5x.evaluate`.
"""

import concurrent.futures
import itertools
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import seqio

from data.corpus import CorpusConstants
from walt_t5x.engine.builtin.summaries import create_writer
from walt_t5x.files import storage
from walt_t5x.models.denoiser_inputs import normalized

TARGETS = ("latents", "video")


class SampleEvaluator:
  """Metrics of each task of a mixture; `predict_fn` samples latents (or reconstructs video), `score_fn` scores them.

  - `score`: mean of the model's `score_batch`: minus the loss of a stage, the PSNR of a tokenizer.
  - `mean_error`, `std_ratio`: over channels, the root mean square difference between the means of predictions and
    data, and the geometric mean of the ratio of their standard deviations. A model that matches the data has 0 and 1.
  - results of the task's own SeqIO `metric_fns` of (targets, predictions) (`walt_t5x.metrics.sample_metrics`).

  Args:
    mixture_or_task_name: a task or mixture, or its registered name.
    feature_converter: the model's feature converter.
    eval_split: for example 'validation'; tasks without it are skipped.
    num_rows: number of examples of each task, from its start.
    seed: seed of the random choice of captions.
    log_dir: folder for metrics by task, in TensorBoard format and `metrics.jsonl`; None only logs them.
    unused: other arguments of `seqio.Evaluator`.
  """

  def __init__(
    self,
    *,
    mixture_or_task_name: Any,
    feature_converter: Any,
    eval_split: str,
    num_rows: int = 64,
    use_cached: bool = True,
    seed: int | None = 0,
    sequence_length: Mapping[str, int],
    log_dir: str | None = None,
    **unused: Any,
  ):
    source = mixture_or_task_name
    if isinstance(source, str):
      source = seqio.get_mixture_or_task(source)
    self.eval_tasks = [t for t in seqio.get_subtasks(source) if eval_split in t.splits]
    self._log_dir = log_dir
    self._rows = {}
    for task in self.eval_tasks:
      rows = task.get_dataset(
        sequence_length=sequence_length,
        split=eval_split,
        use_cached=use_cached,
        shuffle=False,
        seed=seed,
        num_epochs=1,
        trim_output_features=False,
        try_in_mem_cache=False,
      )
      rows = feature_converter(rows, task_feature_lengths=sequence_length).take(num_rows)
      self._rows[task.name] = _with_length(rows.cache())

  @property
  def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the features of an example."""
    spec = next(iter(self._rows.values())).element_spec
    return {name: tuple(feature.shape) for name, feature in spec.items()}

  def evaluate(
    self,
    *,
    compute_metrics: bool,
    step: int,
    predict_fn: Callable[..., Any],
    score_fn: Callable[..., Any],
    predict_with_aux_fn: Callable[..., Any] | None = None,
  ) -> tuple[concurrent.futures.Future[dict[str, dict[str, float]]], None]:
    """Metrics by task, as a completed future.

    Args:
      compute_metrics: True on the host that writes; the others only participate.
      predict_fn: `f(enumerated examples) -> [(index, prediction)]`.
      score_fn: `f(enumerated examples) -> [(index, score)]`.
    """
    results: dict[str, dict[str, float]] = {}
    for task in self.eval_tasks:
      name, rows = task.name, self._rows[task.name]
      predictions = _in_order(predict_fn(rows.enumerate()))
      scores = _in_order(score_fn(rows.enumerate()))
      if compute_metrics:
        constants = getattr(task, "walt_constants", None)
        target = np.stack([_target(row, constants) for row in rows.as_numpy_iterator()])
        results[name] = moments(predictions, target) | {"score": float(np.mean(scores))}
        for metric in task.predict_metric_fns:
          # SeqIO also supports metrics that are not numbers; these are.
          found = cast(
            Mapping[str, float], metric(targets=list(target), predictions=list(predictions))
          )
          results[name] |= {key: float(value) for key, value in found.items()}
        self._write(name, step, results[name])
    done: concurrent.futures.Future[dict[str, dict[str, float]]] = concurrent.futures.Future()
    done.set_result(results)
    return done, None

  def close(self) -> None:
    """Does nothing: no resource is open."""

  def _write(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
    if self._log_dir is not None:
      storage.make_folder(self._log_dir)
    writer = create_writer(self._log_dir, name)
    writer.write_scalars(step, metrics)
    writer.close()


def moments(predictions: np.ndarray, target: np.ndarray) -> dict[str, float]:
  """Distance between the means of the channels of [n, ..., c] and [m, ..., c], and ratio of their deviations."""
  if predictions.shape[-1] != target.shape[-1]:
    raise ValueError(
      f"moments: got {predictions.shape[-1]} channels of predictions and {target.shape[-1]} of data; expected as many"
    )
  ours, theirs = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (predictions, target))
  error = ours.mean(0) - theirs.mean(0)
  ratio = np.log(ours.std(0) + 1e-12) - np.log(theirs.std(0) + 1e-12)
  return {
    "mean_error": float(np.sqrt(np.mean(np.square(error)))),
    "std_ratio": float(np.exp(ratio.mean())),
  }


def _with_length(rows: Any) -> Any:
  """T5X requires a dataset's length, which a pipeline over files does not know before it is read."""
  import tensorflow as tf

  return rows.apply(tf.data.experimental.assert_cardinality(sum(1 for _ in rows)))


def _target(row: Mapping[str, np.ndarray], constants: CorpusConstants | None) -> np.ndarray:
  name = next(n for n in TARGETS if n in row)
  if name == "latents" and constants is not None:
    return np.asarray(normalized(row[name], constants.moments[name]))
  target = np.asarray(row[name], np.float32)
  return target / 255 if name == "video" else target


def _in_order(indexed: Any) -> np.ndarray:
  """Predictions by their index, [n, ...]."""
  by_index = dict(itertools.chain(indexed))
  return np.stack([np.asarray(by_index[i]) for i in sorted(by_index)])
