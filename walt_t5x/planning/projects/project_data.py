"""The data of a project, as `beam_jobs.preflight` finds them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

TASK = "corpus"
# Below this number of rows, a larger share is held out: a twentieth of few rows is often none.
_FEW_ROWS, _FEW_PERCENT, _PERCENT = 200, 20, 5
_ROWS_PER_SHARD = 1000
UNUSABLE = "see the faults above, and set --media_root, --column or --allow_upscale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectData:
  """The data of a project.

  Attributes:
    source: the flags of preprocessing that name the data.
    found: the report of `beam_jobs.preflight`.
    class_names: names of the class folders; empty for other data.
    captions: different captions, at least one if there is one.
  """

  source: Mapping[str, Any]
  found: Mapping[str, Any]
  class_names: Sequence[str] = ()
  captions: Sequence[str] = ()

  @property
  def kinds(self) -> list[str]:
    """The modalities of which a job would write rows, of "image" and "video"."""
    return sorted(self.found["media"]["examples"])

  @property
  def num_classes(self) -> int:
    """Number of classes; 0 without labels."""
    classes = self.found["classes"]
    return max(classes["named"], classes["labels"]) if classes["with_rows"] else 0

  def check(self) -> None:
    """Raises ValueError if no row can be used."""
    if not self.kinds:
      raise ValueError(f"none of the rows can be used: {UNUSABLE}")

  def only(self, kinds: Sequence[str]) -> "ProjectData":
    """The data without other modalities."""
    media = self.found["media"]
    kept = {kind: path for kind, path in media["examples"].items() if kind in kinds}
    found = {**self.found, "media": {**media, "examples": kept}}
    return dataclasses.replace(self, found=found)

  def rows(self) -> dict[str, Any]:
    """The flags of preprocessing for the data, their held-out rows and the number of files."""
    rows = self.found["rows"]["count"]
    held_out = {"validation_percent": _FEW_PERCENT if rows < _FEW_ROWS else _PERCENT}
    return {
      **self.source,
      **({} if self.found["splits"].get("validation") else held_out),
      "num_shards": max(1, min(1024, rows // _ROWS_PER_SHARD)),
    }
