"""What a run is made of, written into its folder before its first step: configuration and provenance of its rows.

T5X knows nothing of provenance, so the check hangs on the one hook that both engines call with the run's folder.
"""

import dataclasses
from typing import Any

import jax
from etils import epath

from walt_t5x.config import gin_config
from walt_t5x.engine import provenance


def configured_rates(dataset: Any) -> dict[str, float]:
  """`rate_<kind>_configured` of a mixture's kinds of rows, to stand beside the `rate_<kind>` that training measures.

  Args:
    dataset: the task or mixture whose rows the run reads; one that does not know its rates gives none.
  """
  rates = getattr(dataset, "walt_rates", {})
  return {f"rate_{kind}_configured": rate for kind, rate in rates.items()}


@dataclasses.dataclass(frozen=True)
class RecordRun:
  """A `summarize_config_fn`: `f(model_dir, summary_writer, step)`.

  Args:
    dataset: the task or mixture whose rows the run reads.
    of_run: where a trained model is used, its run's folder or a checkpoint of it: rows must mean what that run's did.

  Raises:
    provenance.ProvenanceMismatch: when called, if the folder was made with rows that mean something else.
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
