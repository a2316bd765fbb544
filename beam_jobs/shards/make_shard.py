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
from beam_jobs.shards.loading import Failure, Loaded, load_row
from beam_jobs.shards.plan import Job
from beam_jobs.sources import Row, parse_line
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
  with (
    shard_files.ShardWriter(
      job.output, shard, settings_digest=job.settings_digest, rows_digest=digest, band=job.band
    ) as writer,
    ThreadPoolExecutor(job.decode_threads) as pool,
  ):
    loaded = _load_ahead(rows, job, pool)
    captions = encoders.CaptionCache(
      encoders.get_encoders(job.encoders),
      (caption for row in rows for caption in (row.captions or ("",))),
    )
    samples = quality.Samples(job.qa_samples)
    batches = _batched(_keep(loaded, writer, job), job)
    encodings = (_Encoding(batch, job, captions) for batch in batches)
    encoding = next(encodings, None)
    while encoding:
      # The device encodes the next batch while this one is written.
      following = next(encodings, None)
      encoding.write(writer, samples)
      encoding = following
    measured = quality.measure(
      samples, encoders.get_encoders(job.encoders), rows=job.encoders.batch_size
    )
    for name, values in measured.items():
      for value in values:
        writer.measure(name, value)
  return writer.sidecar


def _judged_alike(sidecar: Mapping[str, Any], job: Job) -> bool:
  """Whether the shard is quarantined under the present band if and only if it was when it was made."""
  return bool(sidecar["quarantined"]) == bool(sidecar["moments"] and job.band.violations(sidecar))


def _load_ahead(
  rows: Iterable[Row], job: Job, pool: ThreadPoolExecutor
) -> Iterator[tuple[Row, Loaded | Failure]]:
  """Yields rows in order, with a bounded number of them loaded ahead."""
  waiting = collections.deque()
  ahead = 2 * job.decode_threads + job.encoders.batch_size
  seen: set[str] = set()
  for row in rows:
    waiting.append((row, pool.submit(_load, _check(row, seen, job), job)))
    if len(waiting) > ahead:
      first, future = waiting.popleft()
      yield first, future.result()
  for row, future in waiting:
    yield row, future.result()


def _check(row: Row, seen: set[str], job: Job) -> Row | Failure:
  """The row to load, if it parses, has a caption or label, is not repeated and passes the row filters."""
  if row.problem:
    return Failure("manifest", *row.problem)
  if row.identity in seen:
    return Failure("filter", "duplicate", "another row has the same uri, window and captions")
  if not row.captions and row.label == schema.NO_LABEL:
    return Failure("filter", "no_caption", "the row has neither a caption nor a label")
  try:
    accepted = row_filters.check_row(row, job.filtering.rules)
  except Rejected as rejection:
    return Failure("filter", rejection.reason, str(rejection))
  seen.add(row.identity)
  return accepted


def _load(row: Row | Failure, job: Job) -> Loaded | Failure:
  if isinstance(row, Failure):
    return row
  return load_row(row, job.clip, job.filtering.rules, job.decoding)


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
    size = _batch_rows(first, job)
    yield [first, *itertools.islice(rows, size - 1)]


def _batch_rows(loaded: Loaded, job: Job) -> int:
  image = loaded.row.modality == "image"
  return job.encoders.image_batch_size if image else job.encoders.batch_size


class _Encoding:
  """A batch that is being encoded."""

  def __init__(self, batch: Sequence[Loaded], job: Job, captions: encoders.CaptionCache):
    self._batch, self._captions = batch, captions
    self._encoders = encoders.get_encoders(job.encoders)
    self._pixels = {
      size: np.stack([loaded.clip.frames[size] for loaded in batch])
      for size in job.clip.resolutions
    }
    start, rows = self._encoders.start_encode, _batch_rows(batch[0], job)
    # In threads, so that the programs of the first batch compile in parallel.
    with ThreadPoolExecutor(len(self._pixels)) as pool:
      started = pool.map(lambda pixels: start(pixels, rows), self._pixels.values())
      self._latents = dict(zip(self._pixels, started))
    self._texts = [loaded.row.captions or ("",) for loaded in batch]
    self._encoded = self._encode_texts()

  def _encode_texts(self) -> list[list[tuple[np.ndarray, np.ndarray]] | Failure]:
    flat = [caption for captions in self._texts for caption in captions]
    try:
      encoded = iter(self._captions.encode(flat))
      return [[next(encoded) for _ in captions] for captions in self._texts]
    except ValueError:
      return [self._encode_alone(captions) for captions in self._texts]

  def _encode_alone(self, captions: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]] | Failure:
    try:
      return self._captions.encode(captions)
    except ValueError as error:
      return Failure("encode", "bad_caption", str(error))

  def write(self, writer: shard_files.ShardWriter, samples: quality.Samples) -> None:
    """Waits for the device, writes the batch's records and offers them for quality samples."""
    latents, pixels = {}, {}
    for size, values in self._latents.items():
      values = np.asarray(values)
      name = self._encoders.field(*values.shape[1:4])
      latents[name], pixels[name] = values, self._pixels[size]
    for i, loaded in enumerate(self._batch):
      row, text = loaded.row, self._encoded[i]
      mine = {name: values[i] for name, values in latents.items()}
      if not isinstance(text, Failure):
        text = _nonfinite(mine, text) or text
      if isinstance(text, Failure):
        _fail(row, text, writer)
      else:
        writer.write(_record(loaded, mine, text))
        samples.offer(
          row.key,
          lambda mine=mine, i=i: {
            name: (values.copy(), pixels[name][i].copy()) for name, values in mine.items()
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
    motion=clip.motion,
    latents={name: a for name, a in arrays.items() if schema.is_latents_field(name)},
    pixels={name: a for name, a in arrays.items() if not schema.is_latents_field(name)},
    captions=row.captions or ("",),
    caption_weights=row.caption_weights or (1.0,),
    text_ids=[ids for ids, _ in text],
    text_embedding=[embedding for _, embedding in text],
  )
