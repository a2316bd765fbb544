"""Writes a run's configuration and the provenance of its data to the run's folder, before the first step.

T5X has no concept of provenance, so the check uses the one hook that both engines call with the run's folder.
"""

import dataclasses
from typing import Any

import jax
from etils import epath

from walt_t5x.config import gin_config
from walt_t5x.engine import provenance


def configured_rates(dataset: Any) -> dict[str, float]:
  """`rate_<kind>_configured` for each kind of example in a mixture, to log next to the measured `rate_<kind>`.

  Args:
    dataset: the task or mixture that the run reads; one without known rates gives none.
  """
  rates = getattr(dataset, "walt_rates", {})
  return {f"rate_{kind}_configured": rate for kind, rate in rates.items()}


@dataclasses.dataclass(frozen=True)
class RecordRun:
  """A `summarize_config_fn`: `f(model_dir, summary_writer, step)`.

  Args:
    dataset: the task or mixture that the run reads.
    of_run: folder or checkpoint of the run that trained the model in use; its data must have the same meaning.

  Raises:
    provenance.ProvenanceMismatch: when called, if the folder's run was trained on data with another meaning.
  """

  dataset: Any
  of_run: str | None = None

  def __call__(self, model_dir: str, summary_writer: Any, step: int) -> None:
    folder = epath.Path(model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    given = getattr(self.dataset, "walt_provenance", None)
    if given is not None:
      if self.of_run is not None:
        provenance.compare_with_run(self.of_run, given)
      provenance.record(model_dir, given, write=jax.process_index() == 0)
    gin_config.summarize_gin_config(model_dir, summary_writer, step)
