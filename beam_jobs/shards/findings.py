"""What a trial found: counts of rows, properties of media and captions, and what a job would write."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.shards.trial import Outcome
from beam_jobs.sources.rows import Row


class RowCounts:
  """Counts of the rows of a manifest, before their media are read.

  Args:
    class_names: (key, words) of each class, in the order of the labels.

  Attributes:
    rows: rows that were counted.
    clips: clips that a job would make of them.
    admitted: those of them whose row is valid and passes the filters that need no media.
    words: number of words of every caption.
  """

  def __init__(self, class_names: Sequence[tuple[str, str]]):
    self._classes = class_names
    self.rows, self.clips, self.admitted = 0, 0, 0
    self.words: list[int] = []
    self._splits, self._modalities = Counter[str](), Counter[str]()
    self._labels, self._captions = Counter[int](), Counter[int]()
    self._uris: set[int] = set()
    self._repeated = 0

  def add(self, row: Row, *, clips: int, admitted: bool) -> None:
    """Counts a row, which is a number of clips."""
    self.rows += 1
    self.clips += clips
    self.admitted += clips if admitted else 0
    if row.problem:
      return
    self._splits[row.split] += 1
    self._modalities[row.modality] += 1
    if row.label >= 0:
      self._labels[row.label] += 1
    key = hash(row.uri)
    self._repeated += key in self._uris
    self._uris.add(key)
    self._captions[len(row.captions)] += 1
    self.words += [len(caption.split()) for caption in row.captions]

  def to_json(self) -> dict[str, Any]:
    """Splits, modalities, classes, captions per row, and rows whose uri an earlier row has."""
    labels = sorted(self._labels)
    return {
      "splits": dict(self._splits),
      "modalities": dict(self._modalities),
      "classes": {
        "with_rows": len(labels),
        "named": len(self._classes),
        "labels": 1 + max(labels, default=-1),
        "rows_per_class": summary_of(self._labels.values()),
        "first": [self._classes[label][1] for label in labels[:3] if label < len(self._classes)],
      },
      "captions_per_row": {str(count): rows for count, rows in sorted(self._captions.items())},
      "repeated_uris": self._repeated,
    }


def media_of(tried: Sequence[Outcome]) -> dict[str, Any]:
  """Counts of containers, codecs, sizes and rates, and ranges of durations and bytes, as the files state them.

  "examples" has a file of each modality of which a job would write rows.
  """
  facts = [one.facts for one in tried if one.facts]
  videos = [one.facts for one in tried if one.facts and one.row.modality == "video"]
  return {
    "opened": len(facts),
    "examples": {one.row.modality: one.row.path for one in reversed(tried) if not one.failure},
    "containers": counted(facts, lambda fact: fact.container),
    "codecs": counted(facts, lambda fact: fact.codec),
    "pixel_formats": counted(facts, lambda fact: fact.pixel_format),
    "sizes": counted(facts, lambda fact: "x".join(map(str, fact.size))),
    "rates": counted(videos, lambda fact: "unknown" if fact.rate is None else f"{fact.rate:.4g}"),
    "short_side": summary_of(min(fact.size) for fact in facts),
    "fps": summary_of(fact.rate for fact in videos if fact.rate),
    "seconds": summary_of(fact.seconds for fact in videos if fact.seconds is not None),
    "without_duration": sum(fact.seconds is None for fact in videos),
    "with_sound": sum(fact.has_sound for fact in videos),
    "file_bytes": summary_of(fact.size_bytes for fact in facts),
  }


def tokens_of(tried: Sequence[Outcome], vocabulary_file: str, max_length: int) -> dict[str, Any]:
  """Lengths of the captions of some rows in tokens, eos included, and how many exceed the maximum."""
  from walt_t5x.text.vocabulary import Vocabulary

  vocabulary = Vocabulary.load(vocabulary_file)
  texts = [caption for one in tried for caption in one.row.captions]
  lengths = [vocabulary.length(text) for text in texts]
  return {
    "captions": len(lengths),
    "tokens": summary_of(lengths),
    "mean_tokens": round(sum(lengths) / max(1, len(lengths)), 2),
    "cut": sum(length > max_length for length in lengths),
  }


def expected_of(
  count: int, rows: RowCounts, tried: Sequence[Outcome], latent_bytes: Mapping[str, int]
) -> dict[str, Any]:
  """What a job would do.

  Args:
    count: rows of the manifest.
    rows: those that were read.
    tried: a fair sample of the rows that were admitted.
    latent_bytes: of a clip of each modality; empty if unknown.
  """
  written = [one for one in tried if not one.failure]
  made, kept = (sum(one.clips for one in some) for some in (tried, written))
  rejected = sum(
    one.clips for one in tried if one.failure is not None and one.failure.stage == "filter"
  )
  share = _ratio(rows.admitted, rows.clips) * _ratio(kept, made)
  clips = round(count * _ratio(rows.clips, rows.rows))
  found = {
    "clips": clips,
    "written": round(share * clips),
    "written_percent": round(100 * share, 2),
    "not_admitted_percent": round(100 * _ratio(rows.clips - rows.admitted, rows.clips), 2),
    "media_rejected_percent": round(100 * _ratio(rejected, made), 2),
    "media_dead_percent": round(100 * _ratio(made - kept - rejected, made), 2),
    "pixel_bytes_per_clip": round(
      _ratio(sum(one.clips * one.pixel_bytes for one in written), kept)
    ),
  }
  if latent_bytes:
    latents = sum(one.clips * latent_bytes[one.row.modality] for one in written)
    found["latent_bytes_per_clip"] = round(_ratio(latents, kept))
  return found


def _ratio(part: float, total: float) -> float:
  return part / total if total else 0.0


def summary_of(values: Iterable[float]) -> dict[str, float] | None:
  """Smallest, median and largest of some numbers; None if there are none."""
  ordered = sorted(values)
  if not ordered:
    return None
  return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}


def counted(values: Iterable[Any], key: Callable[[Any], str]) -> dict[str, int]:
  """Name -> how often it occurs, the most frequent first."""
  return dict(Counter(map(key, values)).most_common())
