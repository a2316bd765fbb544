"""Writes a run's configuration, model and data's provenance to the run's folder, and rejects data of another meaning.

The check uses the one hook that both engines call with the run's folder before the first step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from walt_t5x.config import gin_config
from walt_t5x.engine import checkpoints
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch

MODEL_FILE = "model.json"
MODEL_FORMAT = 1
FILE_NAME = "provenance.json"
# Provenance fields of a prepared task that determine the meaning of an example. Others may change between restarts.
_FIELDS = (
  ("schema_version",),
  ("vae", "fingerprint"),
  ("text_encoder", "fingerprint"),
  ("text_encoder", "embedding_dim"),
  ("posterior",),
)
# For each latents field that both have: the normalization of its channels.
_STATISTICS = ("channels", "mean", "std")


def configured_rates(dataset: Any) -> dict[str, float]:
  """`rate_<kind>_configured` for each kind of example in a mixture, to log next to the measured `rate_<kind>`."""
  rates = getattr(dataset, "walt_rates", {})
  return {f"rate_{kind}_configured": rate for kind, rate in rates.items()}


@dataclasses.dataclass(frozen=True)
class RecordRun:
  """A `summarize_config_fn`: `f(model_dir, summary_writer, step)`.

  Args:
    dataset: the task or mixture that the run reads.
    of_run: folder or checkpoint of the run that trained the model in use; its data must have the same meaning.
    model: what the run trains, as `models.model_record.record_of` describes it; None writes none.

  Raises:
    Mismatch: when called, if the folder's run or `of_run` was trained on data with another meaning.
    FileNotFoundError: when called, if `of_run` has no record.
  """

  dataset: Any
  of_run: str | None = None
  model: Mapping[str, Any] | None = None

  def __call__(self, model_dir: str, summary_writer: Any, step: int) -> None:
    given = getattr(self.dataset, "walt_provenance", None)
    if given is not None:
      if self.of_run is not None:
        file = storage.join(storage.run_folder(self.of_run), FILE_NAME)
        if not storage.exists(file):
          raise FileNotFoundError(
            f"{file} does not exist, so the training data of {self.of_run} is unknown; set a run's folder or a "
            "checkpoint inside it, with the provenance.json that training wrote."
          )
        compare(storage.read_json(file), given, where=file)
      record(model_dir, given)
    check_teacher(model_dir, self.model or {})
    if self.model is not None and jax.process_index() == 0:
      storage.write_json(storage.join(model_dir, MODEL_FILE), self.model, sort_keys=True, seal=True)
    gin_config.summarize_gin_config(model_dir, summary_writer, step)


def check_teacher(model_dir: str, model: Mapping[str, Any]) -> None:
  """Raises `Mismatch` if the run in the folder is the student of other weights, which its checkpoints contain."""
  file = storage.join(model_dir, MODEL_FILE)
  if not storage.exists(file) or not checkpoints.has_trained(model_dir):
    return
  found, given = (record.get("teacher") or {} for record in (storage.read_json(file), model))
  if found.get("weights") != given.get("weights"):
    named = [
      f"{teacher.get('checkpoint')} ({teacher.get('weights')})" for teacher in (found, given)
    ]
    raise Mismatch(
      f"{file} records that this run has the teacher {named[0]}, and the command names {named[1]}: name the same "
      "TEACHER, or start a new run in another MODEL_DIR"
    )


def check(model_dir: str, provenance: Mapping[str, Any]) -> None:
  """Raises `Mismatch` if the run in the folder was trained on data of another meaning."""
  file = storage.join(model_dir, FILE_NAME)
  if storage.exists(file) and checkpoints.has_trained(model_dir):
    compare(storage.read_json(file), provenance, where=file)


def record(model_dir: str, provenance: Mapping[str, Any]) -> None:
  """Writes a dataset's provenance to `<model_dir>/provenance.json`, once everything else about a run was accepted.

  The file of a run that has taken steps is kept, that of a start without a step is replaced.

  Raises:
    Mismatch: as `check`.
  """
  check(model_dir, provenance)
  file = storage.join(model_dir, FILE_NAME)
  keep = storage.exists(file) and checkpoints.has_trained(model_dir)
  if jax.process_index() == 0 and not keep:
    storage.write_json(file, provenance, sort_keys=True, seal=True)


def encoder_place(run: storage.PathLike, recorded: str) -> str:
  """Where the tokenizer or the text encoder of a run's provenance is: in a preset, next to the folder of the run.

  A preset is the same in every folder, also in one that has a tokenizer with the recorded name.
  """
  neighbor = storage.join(storage.parent(storage.run_folder(run)), recorded)
  return neighbor if storage.exists(neighbor) else recorded


def model_file(run: storage.PathLike) -> str:
  """Path of the record of a run's model; `run` is the run's folder, or a checkpoint in it."""
  return storage.join(storage.run_folder(run), MODEL_FILE)


def read_model(run: storage.PathLike) -> dict[str, Any]:
  """The record of a run's model, as `models.model_record` describes it; `run` as in `model_file`.

  Raises:
    FileNotFoundError: there is none.
    Damaged: it is not JSON, or changed after it was written.
    Mismatch: it is of another format.
  """
  file = model_file(run)
  if not storage.exists(file):
    raise FileNotFoundError(
      f"no {MODEL_FILE} in {storage.parent(file)}: expected the folder of a training run (its MODEL_DIR), or a "
      "checkpoint in it; a run of an earlier version, or of a model that is not of this package, needs its gin file "
      "(--gin_file; --vae_gin_file for a tokenizer)"
    )
  try:
    content = storage.read_json(file)
    found = content["format"]
  except (KeyError, TypeError) as error:
    raise Mismatch(f"{file} cannot be read: {error}; give the run's gin file instead") from error
  if found != MODEL_FORMAT:
    raise Mismatch(
      f"{file}: its format is {found}, expected {MODEL_FORMAT}; give the run's gin file instead"
    )
  return content


def compare(recorded: Mapping[str, Any], given: Mapping[str, Any], *, where: str) -> None:
  """Raises `Mismatch` at the first required field that differs; a field that either lacks is not compared."""
  shared = sorted(set(recorded.get("latents") or ()) & set(given.get("latents") or ()))
  normalization = [("latents", name, kind) for name in shared for kind in _STATISTICS]
  for field in (*_FIELDS, *normalization):
    old, new = _lookup(recorded, field), _lookup(given, field)
    if old is not None and new is not None and old != new:
      raise Mismatch(
        f"{where} records that this run was trained on data with {'.'.join(field)} = {old!r}, but the dataset now has "
        f"{new!r}. Point the run at the dataset it was trained on, or start a new run in another MODEL_DIR."
      )


def _lookup(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  node: Any = tree
  for name in path:
    node = node.get(name) if isinstance(node, Mapping) else None
  return node
