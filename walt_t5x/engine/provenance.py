"""Records the data that a run is trained on, and rejects other data."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from walt_t5x.files.mismatch import ProvenanceMismatch

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


def record(model_dir: str, provenance: Mapping[str, Any], *, write: bool = True) -> None:
  """Writes `<model_dir>/provenance.json`, or compares with the existing one.

  Args:
    model_dir: the run's folder.
    provenance: provenance of the training data (`walt_provenance` of a task or mixture), JSON-serializable.
    write: False on hosts that only compare.

  Raises:
    ProvenanceMismatch: names the field and both values.
  """
  file = epath.Path(model_dir) / "provenance.json"
  if file.exists():
    compare(json.loads(file.read_text()), provenance, where=str(file))
  elif write:
    temporary = file.parent / "provenance.json.tmp"
    temporary.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    temporary.rename(file)


def compare_with_run(path: str, provenance: Mapping[str, Any]) -> None:
  """Compares with the record of a run, given its folder or one of its checkpoints.

  Raises:
    FileNotFoundError: the run has no record.
    ProvenanceMismatch: names the field and both values.
  """
  folder = epath.Path(path)
  file = (folder.parent if folder.name.startswith("checkpoint_") else folder) / "provenance.json"
  if not file.exists():
    raise FileNotFoundError(
      f"{file} does not exist, so the training data of {path} is unknown; set a run's folder or a checkpoint "
      "inside it, with the provenance.json that training wrote."
    )
  compare(json.loads(file.read_text()), provenance, where=str(file))


def compare(recorded: Mapping[str, Any], given: Mapping[str, Any], *, where: str) -> None:
  """Raises `ProvenanceMismatch` at the first required field that differs; a field that either lacks is not compared."""
  shared = sorted(set(recorded.get("latents") or ()) & set(given.get("latents") or ()))
  normalisation = [("latents", name, kind) for name in shared for kind in _STATISTICS]
  for field in (*_FIELDS, *normalisation):
    old, new = _lookup(recorded, field), _lookup(given, field)
    if old is not None and new is not None and old != new:
      raise ProvenanceMismatch(
        f"{where} records that this run was trained on data with {'.'.join(field)} = {old!r}, but the dataset now has "
        f"{new!r}. Point the run at the dataset it was trained on, or start a new run in another MODEL_DIR."
      )


def _lookup(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  node: Any = tree
  for name in path:
    if not isinstance(node, Mapping) or name not in node:
      return None
    node = node[name]
  return node
