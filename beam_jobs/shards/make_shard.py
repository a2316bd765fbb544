"""Makes one shard: decodes, filters, encodes and writes its rows, and closes it with its sidecar."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from beam_jobs.filters import duplicates, row_filters
from beam_jobs.shards import encoders, progress, quality, shard_files
from beam_jobs.shards.loading import Failure, Loaded, load_row, not_admitted
from beam_jobs.shards.plan import Job
from beam_jobs.sources.rows import Row, parse_line
from data import schema
from walt_t5x.media.rules import Rejected


def process_shard(shard: shard_files.ShardName, lines: Sequence[str], job: Job) -> dict[str, Any]:
  """Makes a shard unless it is complete already; returns its sidecar."""
  digest = shard_files.rows_digest(lines)
  complete = shard_files.complete_sidecar(
    job.output, shard, settings_digest=job.settings_digest, rows_digest=digest
  )
  if complete and not (job.retry_dead and complete["dead"]) and _judged_alike(complete, job):
    progress.ROWS.add(len(lines), skipped=True)
    return complete
  rows = [parse_line(line, job.manifest_folder) for line in sorted(lines)]
  rows.sort(key=lambda row: row.identity)
  loaded_encoders = encoders.get_encoders(job.encoders)
  samples = quality.Samples(job.qa_samples)
  with (
    shard_files.ShardWriter(
      job.output, shard, settings_digest=job.settings_digest, rows_digest=digest, band=job.band
    ) as writer,
    ThreadPoolExecutor(job.decoding.threads) as pool,
  ):
    captions = encoders.CaptionCache(
      loaded_encoders, (caption for row in rows for caption in (row.captions or ("",)))
    )
    kept = _keep(_load_ahead(rows, job, pool, clip=shard.clip), writer, job)
    started = (_start(batch, job, captions) for batch in _batched(kept, job))
    current = next(started, None)
    while current:
      # The device encodes the next batch while this one is written.
      following = next(started, None)
      _write(*current, loaded_encoders=loaded_encoders, writer=writer, samples=samples)
      current = following
    for name, psnr in quality.measure(samples, loaded_encoders, rows=job.encoders.batch_size):
      writer.measure(name, psnr)
  return writer.sidecar


def _judged_alike(sidecar: Mapping[str, Any], job: Job) -> bool:
  """Whether the shard is quarantined under the present band if and only if it was when it was made."""
  return bool(sidecar["quarantined"]) == bool(sidecar["moments"] and job.band.violations(sidecar))


def _load_ahead(
  rows: Iterable[Row], job: Job, pool: ThreadPoolExecutor, *, clip: int
) -> Iterator[tuple[Row, Loaded | Failure]]:
  """Yields rows in order, with a bounded number of them loaded ahead."""
  waiting = collections.deque()
  ahead = 2 * job.decoding.threads + job.encoders.batch_size
  seen: set[str] = set()
  for row in rows:
    waiting.append((row, pool.submit(_load, admitted(row, seen, job), job, clip)))
    if len(waiting) > ahead:
      first, future = waiting.popleft()
      yield first, future.result()
  for row, future in waiting:
    yield row, future.result()


def admitted(row: Row, seen: set[str], job: Job) -> Row | Failure:
  """The row to load, if it is valid, its file may be read, has text where it is stored, and passes the filters."""
  if failure := not_admitted(row, job.manifest_folder, job.allowed):
    return failure
  if row.identity in seen:
    return Failure("filter", "duplicate", "another row has the same uri, window, crop and captions")
  if job.encoders.text_folder and not row.captions and row.label == schema.NO_LABEL:
    return Failure("filter", "no_caption", "the row has neither a caption nor a label")
  try:
    accepted = row_filters.check_row(row, job.filtering.rules)
  except Rejected as rejection:
    return Failure("filter", rejection.reason, str(rejection))
  seen.add(row.identity)
  return accepted


def _load(row: Row | Failure, job: Job, clip: int) -> Loaded | Failure:
  if isinstance(row, Failure):
    return row
  return load_row(row, job.clip, job.filtering.rules, job.decoding, clip=clip)


def _keep(
  loaded: Iterator[tuple[Row, Loaded | Failure]], writer: shard_files.ShardWriter, job: Job
) -> Iterator[Loaded]:
  """Yields rows that were decoded and pass the filters; the others go to the ledger."""
  seen = duplicates.Seen(job.filtering.duplicates, job.filtering.near_duplicate_bits)
  for row, result in loaded:
    if isinstance(result, Loaded):
      try:
        row_filters.check_clip(row, result.clip, job.filtering.rules)
        seen.check(row.uri, result.media_id, result.clip.frames)
        yield result
        continue
      except Rejected as rejection:
        result = Failure("filter", rejection.reason, str(rejection))
    _fail(row, result, writer)


def _fail(row: Row, failure: Failure, writer: shard_files.ShardWriter) -> None:
  writer.fail(row, **dataclasses.asdict(failure))
  progress.ROWS.add(1)


def _batched(rows: Iterator[Loaded], job: Job) -> Iterator[list[Loaded]]:
  for first in rows:
    yield [first, *itertools.islice(rows, _batch_rows(first, job) - 1)]


def _batch_rows(loaded: Loaded, job: Job) -> int:
  image = loaded.row.modality == "image"
  return job.encoders.image_batch_size if image else job.encoders.batch_size


def _start(batch: Sequence[Loaded], job: Job, captions: encoders.CaptionCache) -> tuple:
  """A batch, its latents by resolution, which the device may still be computing, and the texts of its rows."""
  start, rows = encoders.get_encoders(job.encoders).start_encode, _batch_rows(batch[0], job)
  sizes = job.clip.resolutions
  # In threads, so that the programs of the first batch compile in parallel.
  with ThreadPoolExecutor(len(sizes)) as pool:
    pixels = [np.stack([loaded.clip.frames[size] for loaded in batch]) for size in sizes]
    started = pool.map(lambda clips: start(clips, rows), pixels)
    latents = dict(zip(sizes, started))
  return batch, latents, _texts(batch, captions)


def _texts(
  batch: Sequence[Loaded], captions: encoders.CaptionCache
) -> list[list[tuple[np.ndarray, np.ndarray]] | Failure]:
  """Token ids and embeddings of the captions of each row, or why they cannot be encoded."""
  texts = [loaded.row.captions or ("",) for loaded in batch]
  try:
    encoded = iter(captions.encode(list(itertools.chain(*texts))))
    return [list(itertools.islice(encoded, len(mine))) for mine in texts]
  except ValueError as error:
    if len(batch) == 1:
      return [Failure("encode", "bad_caption", str(error))]
    return [text for loaded in batch for text in _texts([loaded], captions)]


def _write(
  batch: Sequence[Loaded],
  latents: Mapping[tuple[int, int], Any],
  texts: Sequence[list[tuple[np.ndarray, np.ndarray]] | Failure],
  *,
  loaded_encoders: Any,
  writer: shard_files.ShardWriter,
  samples: quality.Samples,
) -> None:
  """Waits for the device, writes the batch's records and offers them for quality samples."""
  arrays = {size: np.asarray(values) for size, values in latents.items()}
  names = {size: loaded_encoders.field(*v.shape[1:4]) for size, v in arrays.items()}
  for i, (loaded, text) in enumerate(zip(batch, texts)):
    mine = {names[size]: values[i] for size, values in arrays.items()}
    if not isinstance(text, Failure):
      text = _nonfinite(mine, text) or text
    if isinstance(text, Failure):
      _fail(loaded.row, text, writer)
      continue
    record = _record(loaded, mine, text)
    writer.write(record, token_lengths=loaded_encoders.token_lengths(record.captions))
    samples.offer(
      loaded.row.key,
      lambda mine=mine, frames=loaded.clip.frames: {
        names[size]: (mine[names[size]].copy(), frames[size].copy()) for size in names
      },
    )
    progress.ROWS.add(1)


def _nonfinite(latents: Mapping[str, np.ndarray], text: Sequence[tuple]) -> Failure | None:
  for name, values in latents.items():
    if not np.isfinite(values.astype(np.float32)).all():
      return Failure("encode", "nonfinite_latents", f"{name} contains NaN or infinity")
  if not all(np.isfinite(embedding).all() for _, embedding in text):
    return Failure("encode", "nonfinite_text", "the text embedding contains NaN or infinity")
  return None


def _record(
  loaded: Loaded, arrays: Mapping[str, np.ndarray], text: Sequence[tuple]
) -> schema.Record:
  row, clip = loaded.row, loaded.clip
  return schema.Record(
    id=loaded.record_id,
    uri=row.uri,
    modality=row.modality,
    label=row.label,
    fps=clip.fps,
    start_seconds=clip.start_seconds,
    crop=clip.crop,
    manifest_crop=row.crop,
    motion=clip.motion,
    latents={name: a for name, a in arrays.items() if schema.is_latents_field(name)},
    pixels={name: a for name, a in arrays.items() if not schema.is_latents_field(name)},
    captions=row.captions or ("",),
    caption_weights=row.caption_weights or (1.0,),
    text_ids=[ids for ids, _ in text],
    text_embedding=[embedding for _, embedding in text],
  )
