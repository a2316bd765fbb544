"""The plan of a run: what a worker is told to make, and the shard that each manifest line belongs to.

"Shuffle the manifest, not the tensors": lines are grouped by shard, then one worker makes the shard (`make_shard`).
"""

import dataclasses
from collections.abc import Iterator, Mapping

from beam_jobs.filters import row_filters
from beam_jobs.shards import encoders, quality, shard_files
from beam_jobs.shards.loading import DecodeSettings
from beam_jobs.sources.columns import bad_row
from beam_jobs.sources.rows import MAX_LINE_BYTES, Row, parse_line
from walt_t5x.files import storage
from walt_t5x.media.clips import ClipSpec

# Of a line that is too long, in the ledger.
_SHOWN_BYTES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """Configuration of a worker; plain values that are pickled.

  Args:
    output: folder of the cached tasks.
    task: common name of the task folders.
    manifest_folder: base of relative uris.
    allowed: folders and prefixes of addresses outside of it that rows may name too.
    num_shards: number of shards per split.
    buckets: number of shards per split that rows are assigned to; in a job, all of them.
    clip: which clip to extract from the media.
    settings_digest: digest of everything that decides the contents of a shard.
    qa_samples: rows per shard whose latents are decoded to measure PSNR.
    band: bounds on quality; a shard outside them is quarantined.
    clips_per_video: number of clips of each video of the split train.
    retry_dead: whether shards with dead letters are made again.
    replay: number of the replay; 0 for the job itself.
  """

  output: str
  task: str
  manifest_folder: str
  num_shards: Mapping[str, int]
  buckets: Mapping[str, int]
  encoders: encoders.EncoderConfig
  clip: ClipSpec
  settings_digest: str
  filtering: row_filters.FilterSpec
  decoding: DecodeSettings
  qa_samples: int
  band: quality.Band
  allowed: tuple[str, ...] = ()
  clips_per_video: int = 1
  retry_dead: bool = False
  replay: int = 0


def manifest_text(line: bytes) -> str:
  """Text of a manifest line without a byte order mark; a bad row if the line is too long or not UTF-8."""
  if len(line) > MAX_LINE_BYTES:
    shown = line[:_SHOWN_BYTES].decode(errors="backslashreplace").strip()
    return bad_row(
      shown, f"got a line of more than {MAX_LINE_BYTES:,} bytes, expected those of one row"
    )
  try:
    return line.decode().lstrip("\ufeff").strip()
  except UnicodeDecodeError as error:
    shown = line.decode(errors="backslashreplace").strip()
    return bad_row(shown, f"got a line that is not UTF-8 ({error}); write the manifest in UTF-8")


def clips_of(row: Row, job: Job) -> int:
  """Number of clips of a row's media; a validation score counts each video once."""
  return job.clips_per_video if row.modality == "video" and row.split == "train" else 1


def assign(line: str, clip: int | None, job: Job) -> Iterator[shard_files.ShardName]:
  """The shards of a manifest line, by the hash of its group if it has one, else of uri, start and end.

  A line goes to one shard per clip; `clip` is the only one of a dead letter, and None for the lines of a source.
  """
  row = parse_line(line, job.manifest_folder)
  for number in range(clips_of(row, job)) if clip is None else (clip,):
    yield shard_files.ShardName(
      task=f"{job.task}_{row.modality}s",
      split=row.split,
      index=int(row.shard_key[:16], 16) % job.buckets[row.split],
      count=job.num_shards[row.split],
      clip=number,
      replay=job.replay,
    )


def plan_path(output: str, task: str, replay: int = 0) -> str:
  """File with the number of rows that each shard of a run, or of a replay, must account for."""
  part = f".replay{replay:02d}" if replay else ""
  return storage.join(output, f"{task}{part}.plan.json")
