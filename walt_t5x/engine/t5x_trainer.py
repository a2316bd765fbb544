"""T5X's Trainer, which also writes `metrics.jsonl` as the built-in engine does. Imported only with T5X."""

from collections.abc import Mapping
from typing import Any

from clu import metric_writers

# T5X is optional and not in the requirements.
from t5x import trainer as t5x_trainer  # pyright: ignore[reportMissingImports]

from walt_t5x.engine.builtin.summaries import json_lines_writer, without_empty


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
      constant = (constants or {}) if collection == "train" else {}
      lines = json_lines_writer(summary_dir, collection)
      manager._writer = _Summaries(manager.summary_writer, lines, constant)


class _Summaries(metric_writers.MultiWriter):
  """T5X's writer, whose scalars also go to `lines`; those that include the loss are extended by the constants."""

  def __init__(self, writer: Any, lines: Any, constants: Mapping[str, float]):
    super().__init__([writer])
    self._lines, self._constants = lines, dict(constants)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    scalars = without_empty(scalars) | (self._constants if "loss" in scalars else {})
    super().write_scalars(step, scalars)
    self._lines.write_scalars(step, scalars)

  def flush(self) -> None:
    super().flush()
    self._lines.flush()

  def close(self) -> None:
    super().close()
    self._lines.close()
