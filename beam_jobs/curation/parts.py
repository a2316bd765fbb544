"""Parts, which workers write about their videos and which do not depend on thresholds, and the clips made of them."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from beam_jobs.curation import aspects, duplicates, embeddings, letterbox
from beam_jobs.curation.clip_table import ClipTable
from beam_jobs.curation.videos import CurationJob, Scored, curate_video
from beam_jobs.shards import progress, shard_files
from beam_jobs.sources.rows import Row, parse_line
from walt_t5x.files import damage, storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.media.rules import Rule

CLIPS, TABLE, REJECTED, DEAD, SUMMARY = (
  "clips.jsonl",
  "clips.parquet",
  "rejected.jsonl",
  "dead.jsonl",
  "summary.json",
)
PREPROCESS = "preprocess.toml"
_PARTS = "parts"
# Threads that read the settings of parts.
_READERS = 16


def part_path(output: str, index: int, count: int) -> str:
  """Path of a part's file."""
  return storage.join(output, _PARTS, f"part-{index:05d}-of-{count:05d}.json")


def make_part(index: int, lines: Sequence[str], job: CurationJob) -> Counter[str]:
  """Curates the videos of a part, unless it is there for the same rows and settings; returns counts."""
  path = part_path(job.output, index, job.parts)
  rows_digest = shard_files.rows_digest(lines)
  if storage.exists(path):
    before = _read(path)
    same = before and (before["settings"], before["rows"]) == (job.settings, rows_digest)
    if before and same and not (job.retry_dead and any(v["dead"] for v in before["videos"])):
      progress.ROWS.add(len(lines), skipped=True)
      return Counter(videos=len(lines), skipped=len(lines))
  rows = [parse_line(line, job.media_root) for line in sorted(lines)]
  rows.sort(key=lambda row: row.identity)
  repeated = [a.identity == b.identity for a, b in itertools.pairwise(rows)]

  def one(row: Row, is_repeated: bool) -> dict[str, Any]:
    found = curate_video(row, job, is_repeated=is_repeated)
    progress.ROWS.add(1)
    return found

  with ThreadPoolExecutor(job.decoding.threads) as pool:
    videos = list(pool.map(one, rows, [False, *repeated]))
  content = {"settings": job.settings, "rows": rows_digest, "videos": videos}
  storage.write(path, damage.sealed_json(content))
  dead = sum(video["dead"] is not None for video in videos)
  return Counter(videos=len(videos), dead=dead)


def _read(path: str) -> dict[str, Any] | None:
  """A part; None if it is damaged."""
  try:
    return storage.read_json(path)
  except (damage.Damaged, ValueError):
    return None


def finished(output: str) -> Iterator[dict[str, Any]]:
  """The parts that are there so far."""
  folder = storage.join(output, _PARTS)
  yield from filter(None, (_read(storage.join(folder, name)) for name in _names(output)))


def job_there(output: str) -> CurationJob:
  """The job that made the parts of a folder, as far as other filters need it.

  Raises:
    LedgerError: the folder has no finished job, or one of a version that recorded less.
  """
  path = storage.join(output, SUMMARY)
  if not storage.exists(path):
    raise shard_files.LedgerError(
      f"--refilter: no {path}, expected the --output of a finished run of beam_jobs.curate"
    )
  made = storage.read_json(path)["job"]
  settings = made["settings"]
  if not isinstance(settings, dict) or settings.get("recorded") != list(Scored._fields):
    raise shard_files.LedgerError(
      f"--refilter: an earlier version made the parts in {output}: run the job without it, which makes them again"
    )
  return CurationJob(output=output, **made)


def reject_other_parts(job: CurationJob) -> None:
  """Raises Mismatch if the folder has another number of parts than this job."""
  counts = {_count(name) for name in _names(job.output)} - {job.parts}
  if counts:
    there = max(counts)
    raise Mismatch(
      f"{job.output} has {there} parts, this command {job.parts}: set --num_parts={there}, or another --output"
    )


def other_settings(job: CurationJob) -> str:
  """How many parts are there with other settings than the job's, and with which; "" if none is."""
  names = _names(job.output)
  with ThreadPoolExecutor(_READERS) as pool:
    found = [*pool.map(lambda name: _settings(storage.join(job.output, _PARTS, name)), names)]
  others = [settings for settings in found if settings not in (None, job.settings)]
  if not others:
    return ""
  known = [settings for settings in others if isinstance(settings, dict)]
  differences = [
    f"{name} {_shown(settings.get(name))}, now {_shown(value)}"
    for settings in known
    for name, value in job.settings.items()
    if settings.get(name) != value
  ]
  if len(known) < len(others):
    differences.append("those of an earlier version")
  return (
    f"{len(others)} of {job.parts} parts were made with other settings, and are made again: "
    + "; ".join(dict.fromkeys(differences))
  )


def _settings(path: str) -> Any:
  part = _read(path)
  return part and part["settings"]


def _shown(value: Any) -> str:
  return (",".join(value) if isinstance(value, list) else str(value)) or "none"


def read_part(job: CurationJob, index: int) -> dict[str, Any]:
  """The contents of a part of a job.

  Raises:
    LedgerError: the part is missing, damaged, or of another job.
  """
  path = part_path(job.output, index, job.parts)
  part = _read(path) if storage.exists(path) else None
  if part is None:
    raise shard_files.LedgerError(f"{path} is missing or damaged: run the job again")
  if part["settings"] != job.settings:
    raise shard_files.LedgerError(f"{path} was made with other settings: run the job again")
  return part


def read_parts(job: CurationJob) -> Iterator[tuple[int, dict[str, Any]]]:
  """(number, contents) of each part of a job, in order; raises as `read_part`."""
  return ((index, read_part(job, index)) for index in range(job.parts))


def _count(name: str) -> int:
  return int(name.removesuffix(".json").rpartition("-of-")[2])


def _names(output: str) -> list[str]:
  return [n for n in storage.names(storage.join(output, _PARTS)) if n.startswith("part-")]


@dataclasses.dataclass
class SecondsLedger:
  """Microseconds of video and where they went."""

  videos: int = 0
  clips: int = 0
  cropped: int = 0
  groups: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
  total: int = 0
  kept: int = 0
  dead: int = 0
  names: set[str] = dataclasses.field(default_factory=lambda: {"seconds"})
  rejected: Counter[str] = dataclasses.field(default_factory=Counter)
  dead_videos: Counter[str] = dataclasses.field(default_factory=Counter)

  def to_json(self) -> dict[str, Any]:
    """Plain values; seconds as decimals of microseconds."""
    return {
      "videos": self.videos,
      "clips": self.clips,
      "clips_cropped": self.cropped,
      "groups": {name: {"clips": n, "seconds": us / 1e6} for name, (n, us) in self.groups.items()},
      "seconds": self.total / 1e6,
      "seconds_in_clips": self.kept / 1e6,
      "seconds_rejected": {name: us / 1e6 for name, us in sorted(self.rejected.items())},
      "seconds_dead": self.dead / 1e6,
      "dead_videos": dict(sorted(self.dead_videos.items())),
    }


def finalize(
  job: CurationJob,
  rules: Sequence[Rule],
  *,
  with_duplicates: bool = False,
  keep_bars: bool = False,
  groups: Sequence[aspects.AspectGroup] = (),
  watch: Callable[[Mapping[str, Any], Sequence[str]], None] | None = None,
) -> SecondsLedger:
  """Applies the rules to the segments of all parts, and writes clips, rejected segments and dead videos.

  Args:
    job: what made the parts.
    rules: what clips must satisfy.
    with_duplicates: whether the parts have files of duplicates.
    keep_bars: whether clips with black bars are not cropped.
    groups: clips of each are also written to a separate file.
    watch: called with each video and the reasons why its segments are rejected, "" for those that are not.

  Raises:
    LedgerError: a part is missing, or seconds are unaccounted for.
    ValueError: a rule names a score that no segment has.
  """
  totals, output = SecondsLedger(), job.output
  flags = {"manifest": storage.join(output, CLIPS), "media_root": job.media_root}
  with (
    aspects.GroupFiles(output, groups, flags) as of_groups,
    storage.writer(storage.join(output, CLIPS)) as clips,
    storage.writer(storage.join(output, REJECTED)) as rejected,
    storage.writer(storage.join(output, DEAD)) as dead,
    storage.writer(storage.join(output, TABLE)) as table,
  ):
    rows = ClipTable(table)
    for index, part in read_parts(job):
      copies = storage.read_json(duplicates_path(job, index)) if with_duplicates else {}
      for video in part["videos"]:
        reasons = []
        segments = [*map(_segment, video["segments"])]
        crops = letterbox.crops_of(segments, video["crop"], keep_bars=keep_bars)
        judged = _judged(index, video, rules, copies, totals)
        for (clip, reason), crop in zip(judged, crops, strict=True):
          clip["crop"] = crop
          totals.cropped += crop is not None and not reason
          reasons.append(reason)
          line = (json.dumps(clip | ({"reason": reason} if reason else {})) + "\n").encode()
          (rejected if reason else clips).write(line)
          if not reason:
            of_groups.add(clip, line, video["crop"])
            rows.add(clip)
        if watch:
          watch(video, reasons)
        if video["dead"]:
          start, stage, reason, message = video["dead"]
          dead.write(_dead_line(video, start, stage, reason, message))
    rows.close()
    _check(totals, rules)
  totals.groups = of_groups.counts
  of_groups.finish()
  storage.write(storage.join(output, PREPROCESS), aspects.toml_of(flags))
  made = {name: getattr(job, name) for name in ("media_root", "parts", "settings")}
  storage.write(storage.join(output, SUMMARY), damage.sealed_json(totals.to_json() | {"job": made}))
  return totals


def rejection(segment: Scored, rules: Sequence[Rule]) -> str:
  """Why a segment is not a clip; "" if it is one."""
  if segment.kind == "transition":
    return "transition"
  if not segment.digest:
    return "no_sampled_frame"
  values = {"seconds": (segment.end - segment.start) / 1e6, **segment.scores}
  broken = (r for r in rules if r.name in values and not r.holds(values[r.name]))
  return next((rule.reason for rule in broken), "")


def name_of(part: int, video: Mapping[str, Any], segment: Scored) -> str:
  """Identifies a segment of a corpus."""
  crop = ",".join(map(str, video["crop"] or ()))
  return f"{part:05d} {segment.start} {segment.end} {crop} {video['uri']}"


def part_of(name: str) -> int:
  """The part of a segment."""
  return int(name.partition(" ")[0])


def candidates(
  index: int, job: CurationJob, rules: Sequence[Rule], quality: str, *, with_embeddings: bool
) -> Iterator[duplicates.Candidate]:
  """The clips of a part, among which duplicates are looked for.

  Raises:
    Mismatch: a clip has no score of the name `quality`.
  """
  part = _read(part_path(job.output, index, job.parts))
  for video in part["videos"] if part else ():
    for segment in map(_segment, video["segments"]):
      if rejection(segment, rules):
        continue
      values = {"seconds": (segment.end - segment.start) / 1e6, **segment.scores}
      if quality not in values:
        raise Mismatch(f"--keep: got {quality}, expected one of {', '.join(sorted(values))}")
      yield duplicates.Candidate(
        values[quality],
        name_of(index, video, segment),
        segment.digest,
        bytes.fromhex(segment.hashes),
        embeddings.unpack(segment.embedding) if with_embeddings else b"",
      )


def duplicates_path(job: CurationJob, index: int) -> str:
  """Path of the duplicates among the segments of a part."""
  return storage.join(job.output, _PARTS, f"duplicates-{index:05d}-of-{job.parts:05d}.json")


def _segment(values: Sequence[Any]) -> Scored:
  return Scored(*values)


def _judged(
  index: int,
  video: Mapping[str, Any],
  rules: Sequence[Rule],
  copies: Mapping[str, Sequence[Any]],
  totals: SecondsLedger,
) -> Iterator[tuple[dict[str, Any], str]]:
  """Rows of a video's segments, each with the reason why it is rejected, or ""."""
  totals.videos += 1
  totals.total += video["end"] - video["start"]
  for segment in map(_segment, video["segments"]):
    row = {
      "uri": video["uri"],
      "modality": "video",
      "start_seconds": segment.start / 1e6,
      "end_seconds": segment.end / 1e6,
      "split": video["split"],
      # Clips of one video stay in one shard and one split.
      "group": video["uri"] if video["group"] is None else video["group"],
      "captions": video["captions"],
      "scores": segment.scores,
    }
    reason = rejection(segment, rules)
    if not reason and (copy := copies.get(name_of(index, video, segment))):
      reason, _, better = copy
      _, start, end, _, uri = better.split(" ", 4)
      row["duplicate_of"] = {
        "uri": uri,
        "start_seconds": int(start) / 1e6,
        "end_seconds": int(end) / 1e6,
      }
    if reason:
      totals.rejected[reason] += segment.end - segment.start
    else:
      totals.kept += segment.end - segment.start
      totals.clips += 1
    totals.names.update(segment.scores)
    yield row, reason
  if video["dead"]:
    totals.dead += video["end"] - video["dead"][0]
    totals.dead_videos[video["dead"][2]] += 1


def _dead_line(
  video: Mapping[str, Any], start: int, stage: str, reason: str, message: str
) -> bytes:
  row = {"uri": video["uri"], "start_seconds": start / 1e6, "end_seconds": video["end"] / 1e6}
  return (json.dumps(row | {"stage": stage, "reason": reason, "message": message}) + "\n").encode()


def _check(totals: SecondsLedger, rules: Sequence[Rule]) -> None:
  placed = totals.kept + totals.rejected.total() + totals.dead
  if placed != totals.total:
    raise shard_files.LedgerError(
      f"{totals.total / 1e6} s of video were read, and {placed / 1e6} s are in clips, rejected or dead"
    )
  unknown = [rule.name for rule in rules if len(totals.names) > 1 and rule.name not in totals.names]
  if unknown:
    raise ValueError(
      f"--filter: got {unknown[0]}, expected one of {', '.join(sorted(totals.names))}"
    )
