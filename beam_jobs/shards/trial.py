"""Puts some rows through the first half of a job, up to decoded pixels, and counts what happens to them."""

import contextlib
import dataclasses
import pickle
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from beam_jobs.filters import row_filters
from beam_jobs.shards.loading import DecodeSettings, Failure, load_row
from beam_jobs.shards.plan import Job, clips_of
from beam_jobs.shards.remedies import remedy
from beam_jobs.sources.members import read_media
from beam_jobs.sources.rows import Row
from walt_t5x.media.facts import Facts, describe
from walt_t5x.media.rules import Rejected

# What differs between two messages of one kind: quoted texts, lists, words with digits, dots or slashes.
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\[.*\]|\{.*\}|\S*[\d/_]\S*")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one clip of a row.

  Args:
    row: the row.
    clips: number of clips that a job makes of it.
    failure: why the clip would not be written, or None.
    facts: what the file states, or None if it cannot be opened.
    pixel_bytes: of the clip, in all resolutions; 0 after a failure.
  """

  row: Row
  clips: int
  failure: Failure | None
  facts: Facts | None
  pixel_bytes: int = 0


def outcomes(rows: Sequence[Row], job: Job, *, seed: int) -> Iterator[Outcome]:
  """Loads rows as a job does, each as one of its clips by chance, several at once, in order."""
  draw = random.Random(seed)
  describing = _Describing(job.decoding, job.clip.max_pixels)

  def attempt(row: Row, clip: int) -> Outcome:
    clips = clips_of(row, job)
    facts = None
    # What cannot be described cannot be loaded either, and then the failure has the reason.
    with contextlib.suppress(Exception):
      content = read_media(row.path, max_bytes=job.clip.max_bytes)
      facts = describing(content, row.modality)
    loaded = load_row(row, job.clip, job.filtering.rules, job.decoding, clip=clip)
    if isinstance(loaded, Failure):
      return Outcome(row, clips, loaded, facts)
    try:
      row_filters.check_clip(row, loaded.clip, job.filtering.rules)
    except Rejected as rejection:
      return Outcome(row, clips, Failure("filter", rejection.reason, str(rejection)), facts)
    size = sum(frames.nbytes for frames in loaded.clip.frames.values())
    return Outcome(row, clips, None, facts, size)

  with ThreadPoolExecutor(job.decoding.threads) as pool, contextlib.closing(describing):
    yield from pool.map(attempt, rows, [draw.randrange(clips_of(row, job)) for row in rows])


class _Describing:
  """`describe`, in the isolation of the job."""

  def __init__(self, settings: DecodeSettings, max_pixels: int):
    self._max_pixels, self._isolated = max_pixels, None
    if settings.isolation == "process":
      self._isolated = settings.isolated(describe)

  def __call__(self, content: bytes, modality: str) -> Facts:
    if self._isolated is None:
      return describe(content, modality, self._max_pixels)
    return self._isolated(pickle.PickleBuffer(content), modality, self._max_pixels)

  def close(self) -> None:
    if self._isolated is not None:
      self._isolated.close()


class Faults:
  """Failures by stage, reason and kind of message, each with a few examples.

  Args:
    examples: how many are kept of each kind.
  """

  def __init__(self, *, examples: int):
    self._examples = examples
    self._found: dict[tuple[str, str, str], dict[str, Any]] = {}

  def add(self, where: str, failure: Failure, *, of: str) -> None:
    """Counts a failure; `of` says which rows were looked at: 'all rows' or 'sampled rows'."""
    # Lines of a manifest are broken in many ways, damaged media in those that the reasons name.
    kind = _PARTICULARS.sub("*", failure.message) if failure.stage == "manifest" else ""
    self._add((failure.stage, failure.reason, kind), [(where, failure.message)], 1, of)

  def add_names(self, reason: str, message: str, names: Sequence[str], count: int) -> None:
    """Counts names that are not rows."""
    if count:
      self._add(("names", reason, ""), [(name, message) for name in names], count, "names")

  def _add(self, key: tuple, examples: list[tuple[str, str]], count: int, of: str) -> None:
    stage, reason, _ = key
    empty = {"reason": reason, "stage": stage, "count": 0, "of": of, "examples": []}
    fault = self._found.setdefault(key, empty | {"remedy": remedy(stage, reason)})
    fault["count"] += count
    shown = [{"where": where, "message": message} for where, message in examples]
    fault["examples"] = (fault["examples"] + shown)[: self._examples]

  def listed(self) -> list[dict[str, Any]]:
    """JSON objects, the most frequent first."""
    return sorted(self._found.values(), key=lambda fault: (-fault["count"], fault["reason"]))
