"""Groups of clips by the aspect of their picture, each of which is preprocessed at its own resolutions."""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from walt_t5x.files import storage
from walt_t5x.media.geometry import EVERYTHING, Crop

_FILES = re.compile(r"(clips|preprocess)-(\d+x\d+)\.(jsonl|toml)")


class AspectGroup(NamedTuple):
  """Clips whose aspect is closest to that of the group.

  Attributes:
    name: in names of files, such as "16x9".
    aspect: width / height.
  """

  name: str
  aspect: float

  @classmethod
  def parse(cls, text: str) -> "AspectGroup":
    """Reads WIDTH:HEIGHT, such as 16:9.

    Raises:
      ValueError: it is not that.
    """
    found = re.fullmatch(r"([1-9]\d*)[:x]([1-9]\d*)", text.strip())
    if found is None:
      raise ValueError(f"--groups: got {text!r}, expected WIDTH:HEIGHT, such as 16:9")
    width, height = found.groups()
    return cls(f"{width}x{height}", int(width) / int(height))


def parse_groups(text: str) -> tuple[AspectGroup, ...]:
  """Reads groups separated by commas; none of an empty text.

  Raises:
    ValueError: one is malformed, or two have the same aspect.
  """
  groups = tuple(AspectGroup.parse(one) for one in text.split(",") if one.strip())
  aspects = [group.aspect for group in groups]
  if len(set(aspects)) < len(aspects):
    raise ValueError(f"--groups: got {text!r}, expected a different aspect in each group")
  return groups


def closest(aspect: float, groups: Sequence[AspectGroup]) -> AspectGroup:
  """The group that loses least of a picture of this width / height: closest in ratio; of two, the wider one."""
  return min(groups, key=lambda group: (abs(math.log(aspect / group.aspect)), -group.aspect))


def aspect_of(scanned: float, scanned_crop: Crop | None, crop: Crop | None) -> float:
  """Width / height of the crop of a picture, from that of the crop that scores saw."""
  (top, bottom, left, right), outer = crop or EVERYTHING, scanned_crop or EVERYTHING
  height, width = (bottom - top) / (outer[1] - outer[0]), (right - left) / (outer[3] - outer[2])
  return scanned * width / height


class GroupFiles(contextlib.ExitStack):
  """Writes clips-GROUP.jsonl and preprocess-GROUP.toml of each group; deletes those of other groups.

  Attributes:
    counts: clips and microseconds by the name of the group.
  """

  def __init__(self, output: str, groups: Sequence[AspectGroup], preprocess: Mapping[str, Any]):
    super().__init__()
    self._output, self._groups, self._preprocess = output, groups, preprocess
    self.counts = {group.name: [0, 0] for group in groups}

  def __enter__(self) -> "GroupFiles":
    super().__enter__()
    self._writers = {
      group.name: self.enter_context(storage.writer(self._path("clips", group.name, "jsonl")))
      for group in self._groups
    }
    return self

  def add(self, clip: Mapping[str, Any], line: bytes, scanned_crop: Crop | None) -> None:
    """Adds a clip to its group.

    Raises:
      ValueError: the clip has no score `aspect`.
    """
    if not self._groups:
      return
    if "aspect" not in clip["scores"]:
      raise ValueError(
        "--groups: the parts have no score aspect, expected those of this version: run without --refilter"
      )
    shape = aspect_of(clip["scores"]["aspect"], scanned_crop, clip["crop"])
    name = closest(shape, self._groups).name
    self._writers[name].write(line)
    counts = self.counts[name]
    counts[0] += 1
    counts[1] += round((clip["end_seconds"] - clip["start_seconds"]) * 1e6)

  def finish(self) -> None:
    """Writes the settings of preprocessing, after the clips."""
    for name in self.counts:
      flags = {**self._preprocess, "manifest": self._path("clips", name, "jsonl")}
      storage.write(self._path("preprocess", name, "toml"), toml_of(flags))
    for name in storage.names(self._output):
      found = _FILES.fullmatch(name)
      if found and found[2] not in self.counts:
        storage.delete(storage.join(self._output, name))

  def _path(self, what: str, name: str, suffix: str) -> str:
    return storage.join(self._output, f"{what}-{name}.{suffix}")


def toml_of(flags: Mapping[str, Any]) -> str:
  """Flags as a file for --config."""
  return "".join(f"{name} = {json.dumps(value)}\n" for name, value in flags.items())
