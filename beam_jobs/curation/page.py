"""Writes the page about a curated corpus: decodes the pictures of the clips that `overview` selected."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np

from beam_jobs.curation import pairs as pair_sample
from beam_jobs.curation import parts
from beam_jobs.curation.overview import BinCounts, Judged, Overview, segments_of
from beam_jobs.curation.thumbnails import thumbnail
from beam_jobs.curation.videos import CurationJob
from beam_jobs.shards.loading import DecodeSettings, failure_of
from beam_jobs.sources.members import media_source
from walt_t5x.files import storage
from walt_t5x.html import curation_page
from walt_t5x.media.rules import Rule

PAGE = "page.html"
# (path, crop)
_Picture = tuple[str, tuple[float, ...] | None]
# (picture, microseconds)
_Moment = tuple[_Picture, int]


def finalize(
  job: CurationJob,
  rules: Sequence[Rule],
  *,
  clips: int,
  decoding: DecodeSettings,
  flags: Sequence[str],
  keep: str | None,
  **options: Any,
) -> parts.SecondsLedger:
  """Writes the results of all parts with `parts.finalize`, and the page about them.

  Args:
    job, rules: see `parts.finalize`, which also takes the options.
    clips: how many are shown next to thresholds, and of each sampled video; 0 for no page.
    decoding: how their pictures are decoded.
    flags: those that a run with other thresholds needs, next to its filters.
    keep: the score of which the largest of duplicates is kept; None if they were not looked for.
  """
  path, with_duplicates = storage.join(job.output, PAGE), keep is not None
  if not clips:
    storage.delete(path)
    return parts.finalize(job, rules, with_duplicates=with_duplicates, **options)
  overview = Overview(rules, clips=clips)
  options |= {"with_duplicates": with_duplicates, "watch": overview.add}
  totals = parts.finalize(job, rules, **options)
  pairs = pair_sample.sampled(job, limit=max(1, clips // 2)) if with_duplicates else []
  _write(path, overview, pairs, totals.to_json(), decoding, flags, keep or "")
  return totals


def _write(
  path: str,
  overview: Overview,
  pairs: Sequence[pair_sample.Pair],
  totals: Mapping[str, Any],
  decoding: DecodeSettings,
  flags: Sequence[str],
  keep: str,
) -> None:
  near = [[side.items() for side in one.sides] for one in overview.thresholds]
  videos = [_shown(video, reasons, overview.clips) for video, reasons in overview.videos.items()]
  videos.sort(key=lambda shown: (shown[0]["uri"], shown[0]["start"]))
  wanted = chain(
    *chain(*near),
    *(segments for _, segments, _ in videos),
    *((pair.rejected, pair.kept) for pair in pairs),
  )
  pictures = _pictures(map(_middle, wanted), decoding)

  def shown(found: Iterable[Judged]) -> list[curation_page.ShownSegment]:
    return [
      curation_page.ShownSegment(
        uri=_printable(one.uri),
        start=one.start / 1e6,
        end=one.end / 1e6,
        reason=one.reason,
        scores=one.scores,
        picture=pictures[_middle(one)],
      )
      for one in found
    ]

  curation_page.write_curation(
    path,
    totals=totals,
    segments=overview.segments,
    histograms={
      name: _histogram(
        found, [one.rule.value for one in overview.thresholds if one.rule.name == name]
      )
      for name, found in overview.histograms.items()
    },
    thresholds=[
      curation_page.Threshold(
        rule=one.rule, failing=one.failing, below=shown(below), above=shown(above)
      )
      for one, (below, above) in zip(overview.thresholds, near, strict=True)
    ],
    candidates=overview.candidates,
    sample=overview.sample.items(),
    flags=flags,
    pairs=[
      curation_page.DuplicatePair(
        clips=shown([pair.rejected, pair.kept]), score=keep, bits=pair.bits, cosine=pair.cosine
      )
      for pair in pairs
    ],
    videos=[
      curation_page.Timeline(
        uri=_printable(video["uri"]),
        segments=shown(segments),
        first=first,
        count=len(video["segments"]),
        dead=video["dead"] and (video["dead"][0] / 1e6, video["end"] / 1e6, video["dead"][2]),
      )
      for video, segments, first in videos
    ],
  )


def _histogram(found: BinCounts, marked: Sequence[float]) -> curation_page.Histogram:
  bins, axis = found.bins(marked)
  return curation_page.Histogram(bins=bins, axis=axis, low=found.low, high=found.high)


def _shown(
  video: Mapping[str, Any], reasons: Sequence[str], limit: int
) -> tuple[Mapping[str, Any], list[Judged], int]:
  """A video with at most `limit` of its segments, from its middle, and the number of the first of them."""
  found = segments_of(video, reasons)
  first = max(0, (len(found) - limit) // 2)
  return video, found[first : first + limit], first


def _middle(found: Judged) -> _Moment:
  crop = None if found.crop is None else tuple(found.crop)
  return (found.path, crop), (found.start + found.end) // 2


def _printable(text: str) -> str:
  """Text that can be encoded: names of files need not be."""
  return text.encode("utf-8", "backslashreplace").decode()


def _pictures(
  moments: Iterable[_Moment], decoding: DecodeSettings
) -> dict[_Moment, np.ndarray | str]:
  """The frame at each moment, or the reason why there is none."""
  times: dict[_Picture, set[int]] = {}
  for shown, at in moments:
    times.setdefault(shown, set()).add(at)
  with _decoder(decoding) as decode:

    def one(shown: _Picture) -> list[tuple[_Moment, np.ndarray | str]]:
      found: list[tuple[_Moment, np.ndarray | str]] = []
      path, crop = shown
      for at in sorted(times[shown]):
        try:
          picture: np.ndarray | str = decode(media_source(path), at, crop)
        except Exception as error:
          failure = failure_of(error)
          picture = f"{failure.reason}: {_printable(failure.message)[:200]}"
        found.append(((shown, at), picture))
      return found

    with ThreadPoolExecutor(decoding.threads) as pool:
      return dict(chain.from_iterable(pool.map(one, times)))


@contextlib.contextmanager
def _decoder(decoding: DecodeSettings) -> Iterator[Callable[..., Any]]:
  if decoding.isolation == "thread":
    yield thumbnail
    return
  pool = decoding.isolated(thumbnail)
  try:
    yield pool
  finally:
    pool.close()
