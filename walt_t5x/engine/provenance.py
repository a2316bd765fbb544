"""Which data a run was trained on, and a refusal to mix it with other data."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from walt_t5x.files.mismatch import ProvenanceMismatch

# Fields of a prepared task's provenance that decide what a row means. Everything else may change between restarts.
_FIELDS = (
  ("schema_version",),
  ("vae", "fingerprint"),
  ("text_encoder", "fingerprint"),
  ("text_encoder", "embedding_dim"),
  ("posterior",),
)
# Of each latents field that both have: the normalisation of its channels.
_STATISTICS = ("channels", "mean", "std")


def record(model_dir: str, provenance: Mapping[str, Any], *, write: bool = True) -> None:
  """Writes `<model_dir>/provenance.json`, or compares with the one that is there.

  Args:
    model_dir: the run's folder.
    provenance: that of the training rows (`walt_provenance` of a task or mixture), JSON-able.
    write: False on hosts that only compare.

  Raises:
    ProvenanceMismatch: naming the field and both values.
  """
  file = epath.Path(model_dir) / "provenance.json"
  if file.exists():
    compare(json.loads(file.read_text()), provenance, where=str(file))
  elif write:
    temporary = file.parent / "provenance.json.tmp"
    temporary.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    temporary.rename(file)


def compare_with_run(path: str, provenance: Mapping[str, Any]) -> None:
  """Compares with what a run recorded, given its folder or one of its checkpoints.

  Raises:
    FileNotFoundError: it recorded nothing.
    ProvenanceMismatch: naming the field and both values.
  """
  folder = epath.Path(path)
  file = (folder.parent if folder.name.startswith("checkpoint_") else folder) / "provenance.json"
  if not file.exists():
    raise FileNotFoundError(
      f"{file} does not exist, so nothing says which rows {path} was trained on; name a run's folder or a checkpoint "
      "inside it, with the provenance.json that training wrote."
    )
  compare(json.loads(file.read_text()), provenance, where=str(file))


def compare(recorded: Mapping[str, Any], given: Mapping[str, Any], *, where: str) -> None:
  """Raises `ProvenanceMismatch` at the first deciding field that differs; a field that either lacks is not compared."""
  shared = sorted(set(recorded.get("latents") or ()) & set(given.get("latents") or ()))
  normalisation = [("latents", name, kind) for name in shared for kind in _STATISTICS]
  for field in (*_FIELDS, *normalisation):
    old, new = _lookup(recorded, field), _lookup(given, field)
    if old is not None and new is not None and old != new:
      raise ProvenanceMismatch(
        f"{where} says that this run was trained on rows with {'.'.join(field)} = {old!r}, but the dataset now has "
        f"{new!r}. Point the run at the dataset it was trained on, or start a new run in another MODEL_DIR."
      )


def _lookup(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  node: Any = tree
  for name in path:
    if not isinstance(node, Mapping) or name not in node:
      return None
    node = node[name]
  return node
