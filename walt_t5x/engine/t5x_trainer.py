"""T5X's Trainer, which also writes `metrics.jsonl` as the built-in engine does. Imported only with T5X."""

from collections.abc import Mapping, Sequence
from typing import Any

from clu import metric_writers

# T5X is optional and not in the requirements.
from t5x import trainer as t5x_trainer  # pyright: ignore[reportMissingImports]

from walt_t5x.engine.builtin.summaries import json_lines_writer


class Trainer(t5x_trainer.Trainer):
  """T5X's Trainer with the same arguments; scalars go to the log, TensorBoard and `<model_dir>/metrics.jsonl`.

  Names of evaluation metrics have the prefix `training_eval/<task>` in `metrics.jsonl`. `constants` are scalars added
  to every training summary.
  """

  def __init__(
    self,
    *args: Any,
    summary_dir: str | None,
    num_microbatches: int | None = None,
    constants: Mapping[str, float] | None = None,
    **kwargs: Any,
  ):
    super().__init__(*args, summary_dir=summary_dir, num_microbatches=num_microbatches, **kwargs)
    managers = {"train": self.train_metrics_manager} | {
      f"training_eval/{name}": manager for name, manager in self.eval_metrics_managers.items()
    }
    for collection, manager in managers.items():
      lines = json_lines_writer(summary_dir, collection)
      writers = [manager.summary_writer, *([] if lines is None else [_Scalars(lines)])]
      constant = (constants or {}) if collection == "train" else {}
      manager._writer = _Summaries(writers, constant)


class _Summaries(metric_writers.MultiWriter):
  """Several writers as one; scalars that include the loss are extended by the constants."""

  def __init__(self, writers: Sequence[Any], constants: Mapping[str, float]):
    super().__init__(writers)
    self._constants = dict(constants)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    constant = self._constants if "loss" in scalars else {}
    super().write_scalars(step, {**scalars, **constant})


class _Scalars(metric_writers.MetricWriter):
  """A CLU writer that keeps the scalars and ignores everything else."""

  def __init__(self, writer: Any):
    self._writer = writer

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._writer.write_scalars(step, scalars)

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()

  def _leave(self, *unused: Any, **also_unused: Any) -> None:
    pass

  write_summaries = write_images = write_videos = write_audios = _leave
  write_texts = write_histograms = write_hparams = write_pointcloud = _leave
