"""Kinetics-600: `train.csv`, `validate.csv`, and clips of about 10 s in `<split>/<label>`, some of them missing."""

import string
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from data.lookalikes import media
from data.lookalikes.corpus import WRITTEN, Corpus, broken_videos, rng

TEMPLATE = "{split}/{label}/{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"
_FLAGS = ("--source=kinetics", "--media_root=k600", f"--uri_template={TEMPLATE}")
SOURCES = {f"k600/{name}.csv": _FLAGS for name in ("train", "validate")}
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
LABELS = ("abseiling", "baking cookies", "jumping into pool", "playing guitar", "tai chi")
_NTSC = Fraction(30_000, 1001)
# (rate, height, width): as uploaded, most at 30 or 25 frames per second, some upright.
_FORMS = ((_NTSC, 144, 256), (25, 144, 192), (30, 240, 136), (25, 136, 240), (_NTSC, 180, 240))
_SLOW = 15
SECONDS = 10.0
_LETTERS = np.array(list(string.ascii_letters + string.digits + "-_"))


def write(corpus: Corpus) -> None:
  """Writes `k600`."""
  for split, per_label in (("train", 3), ("validate", 1)):
    part = _Part(corpus, split)
    for number, label in enumerate(LABELS * per_label):
      rate, height, width = _FORMS[number % len(_FORMS)]
      part.add(label, part.clip(rate, (height, width)))
    # No download is complete.
    part.add(LABELS[0], None, kind="missing", expect="missing")
    part.add(LABELS[1], None, kind="missing", expect="missing")
    if split == "train" or corpus.faults:
      # At 25 frames per second, four of ten frames would be repeated.
      slow = part.clip(_SLOW, (144, 192))
      part.add(LABELS[2], slow, kind="low_frame_rate", expect="low_frame_rate")
    if corpus.faults and split == "train":
      _plant(part)
    part.finish()


class _Part:
  """One split: its rows and files."""

  def __init__(self, corpus: Corpus, split: str):
    self.corpus, self.split, self.manifest = corpus, split, f"k600/{split}.csv"
    self.rows: list[tuple[Any, ...]] = []
    self.lines: list[str] = []
    self._random = rng(corpus, len(split))

  def clip(self, rate: Fraction | int, size: tuple[int, int], **options: Any) -> bytes:
    """A clip of 10 seconds, or as many as the corpus has, with sound."""
    seconds = self.corpus.seconds or SECONDS
    options = {"num_frames": round(seconds * rate), "sound_seconds": seconds} | options
    return media.video(self.corpus.scene(), rate=rate, size=size, **options)

  def row(self, label: str) -> tuple[Any, ...]:
    """Cells of a new row."""
    start = int(self._random.integers(0, 200))
    name = "".join(self._random.choice(_LETTERS, 11))
    return label, name, start, start + 10, self.split

  def add(self, label: str, content: bytes | None, *, kind: str = "", expect: str = "") -> tuple:
    """Adds a row, with its file unless it has no content."""
    row = self.row(label)
    uri = TEMPLATE.format(**dict(zip(COLUMNS, row)))
    if content is not None:
      self.corpus.write(f"k600/{uri}", content)
    self.rows.append(row)
    if kind:
      self.corpus.note(kind, self.manifest, uri, expect)
    return row

  def add_line(self, kind: str, cells: Iterable[Any], expect: str, where: str = "") -> None:
    """Adds a line whose cells are not quoted."""
    self.lines.append(",".join(map(str, cells)))
    if where:
      self.corpus.note(kind, self.manifest, where, expect)
    else:
      self.corpus.note_line(kind, self.manifest, self.lines, expect)

  def finish(self) -> None:
    """Writes the table."""
    header = COLUMNS
    if self.corpus.faults and self.split == "validate":
      # As Excel writes UTF-8.
      header = ("\ufeff" + COLUMNS[0], *COLUMNS[1:])
      uri = TEMPLATE.format(**dict(zip(COLUMNS, self.rows[0])))
      self.corpus.note("byte_order_mark", self.manifest, uri, WRITTEN)
    self.corpus.write_table(self.manifest, [header, *self.rows], self.lines)


def _plant(part: _Part) -> None:
  clip = part.clip(25, (144, 192), num_frames=60, sound_seconds=2.4)
  for kind, (content, reason) in broken_videos(clip, part.corpus.scene()).items():
    part.add(LABELS[3], content, kind=kind, expect=reason)
  part.add(LABELS[3], media.sound(), kind="sound_only", expect="no_video_stream")
  plain = {"num_frames": 75, "sound_seconds": 3.0}
  longer = part.clip(25, (144, 192), **plain | {"sound_seconds": 6.0})
  part.add(LABELS[4], longer, kind="sound_longer_than_picture", expect=WRITTEN)
  late = part.clip(25, (144, 192), late_seconds=1.0, **plain | {"sound_seconds": 4.0})
  part.add(LABELS[4], late, kind="picture_begins_late", expect=WRITTEN)
  for kind, turns, mirrored in (("rotated", 1, False), ("mirrored", 0, True)):
    content = media.turned(
      part.clip(30, (144, 192), **plain), quarter_turns=turns, mirrored=mirrored
    )
    part.add(LABELS[4], content, kind=kind, expect=WRITTEN)
  again = part.add(LABELS[0], part.clip(25, (136, 240), **plain))
  uri = TEMPLATE.format(**dict(zip(COLUMNS, again)))
  part.add_line("duplicate_row", again, "duplicate", uri)
  label, *others = part.row(LABELS[1])
  part.add_line("unclosed_quote", (f'"{label}', *others), "bad_source_row")
  part.add_line("comma_in_label", (f"{label}, and cakes", *others), "bad_source_row")
  name, start, end, split = others
  part.add_line(
    "no_number", (label, f"{name[:-1]}0", "", end, split), "bad_source_row", f"{name[:-1]}0"
  )
  part.add_line(
    "unknown_split", (label, name, start, end, "holdout_test"), "bad_split", "holdout_test"
  )
