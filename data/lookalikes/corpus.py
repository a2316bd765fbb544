"""A folder that is filled with the files of a look-alike, and the list of what a job must do with the odd ones."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.lookalikes import media

# `Odd.expect` of a row that is like any other, and of a name that must not become a row.
WRITTEN, NO_ROW = "written", "no_row"
# Lines of a table before those that no `csv` writer would write: with rows after them, which must not be lost.
_BEFORE_BROKEN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd:
  """An oddity or a fault of a corpus, as `faults.json` has it.

  Args:
    kind: what is odd, in one word.
    manifest: the `--manifest` that it belongs to, relative to the folder of the look-alike.
    where: a part of the uri that a ledger has: of a path, of `<table>:<line>` or of `<tar>::<sample>`.
    expect: the reason in the ledger, `written`, or `no_row`.
  """

  kind: str
  manifest: str
  where: str
  expect: str


class Corpus:
  """The folder of one look-alike.

  Attributes:
    faults: whether faults are planted.
    seed: changes the scenes, not the names.
    seconds: about how long clips are, if they are shorter than those of the real corpus.
    odd: what was noted so far.
  """

  def __init__(
    self, folder: Path, *, faults: bool = False, seed: int = 0, seconds: float | None = None
  ):
    self.folder, self.faults, self.seed, self.seconds = folder, faults, seed, seconds
    self.odd: list[Odd] = []
    self._scenes = 0

  def scene(self) -> int:
    """The seed of another scene."""
    self._scenes += 1
    return 1000 * self.seed + self._scenes

  def write(self, path: str, content: bytes | str) -> str:
    """Writes a file; returns its path."""
    target = self.folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      # Tables may have bytes that are not UTF-8.
      content = content.encode(errors="surrogateescape")
    target.write_bytes(content)
    return path

  def write_table(
    self, path: str, rows: Sequence[Sequence[Any]], broken: Sequence[str] = ()
  ) -> None:
    """Writes a CSV file: `rows` begins with the header, and the broken lines follow its first rows."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerows(rows[:_BEFORE_BROKEN])
    text.writelines(line + "\n" for line in broken)
    table.writerows(rows[_BEFORE_BROKEN:])
    self.write(path, text.getvalue())

  def note_line(self, kind: str, manifest: str, broken: Sequence[str], expect: str) -> None:
    """Adds a line to `faults.json` for the last broken line of a table."""
    self.note(kind, manifest, f"{manifest}:{_BEFORE_BROKEN + len(broken)}", expect)

  def note(self, kind: str, manifest: str, where: str, expect: str) -> None:
    """Adds a line to `faults.json`."""
    self.odd.append(Odd(kind=kind, manifest=manifest, where=where, expect=expect))

  def finish(self) -> None:
    """Writes `faults.json`."""
    text = json.dumps([dataclasses.asdict(one) for one in self.odd], indent=1, ensure_ascii=False)
    self.write("faults.json", text + "\n")


def broken_videos(clip: bytes, scene: int, **short: Any) -> dict[str, tuple[bytes, str]]:
  """Kind -> (content, reason in the ledger) of damaged or unsuitable videos.

  Args:
    clip: a sound video.
    scene: of the videos that are encoded.
    short: arguments of `media.video` for the codec and container.
  """
  small = {name: value for name, value in short.items() if name != "size"}
  return {
    "truncated_video": (clip[: len(clip) // 12], "truncated"),
    "zero_bytes": (b"", "empty"),
    "html_page": (media.HTML, "not_media"),
    "too_short": (media.video(scene, num_frames=9, rate=25, **short), "too_short"),
    "too_small": (media.video(scene, num_frames=40, rate=25, size=(12, 16), **small), "too_small"),
  }


def rng(corpus: Corpus, *stream: int) -> np.random.Generator:
  """A separate generator for each part of a corpus."""
  return np.random.default_rng([corpus.seed, *stream])
