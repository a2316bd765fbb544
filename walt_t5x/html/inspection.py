"""Contents of a page about shards: their records' statistics, a sample of them, the ledgers, latents as images."""

import collections
import dataclasses
import hashlib
import heapq
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from walt_t5x.media.pixels import to_uint8

SHARD_NAME = re.compile(
  r"(?P<split>\w+)\.tfrecord-(?:clip\d{2,}\.)?(?:replay(?P<replay>\d{2,})\.)?\d{5}-of-\d{5}"
)
_EXAMPLES = 5


@dataclasses.dataclass(kw_only=True)
class Shards:
  """The contents of some shards of a folder.

  `columns` has one value per record or caption, `sample` the records to show with the names of their shards, `sidecars`
  the notes of the job by the name of the shard.
  """

  folder: str
  names: Sequence[str]
  sidecars: Mapping[str, Mapping[str, Any]]
  columns: dict[str, list[float]]
  sample: list[tuple[str, Any]]


def find_shards(path: str) -> tuple[str, list[str]]:
  """(folder, file names) of one shard, or of all shards of a folder.

  Raises:
    FileNotFoundError: the shard does not exist.
  """
  from walt_t5x.files import storage

  folder, name = storage.parent(path), path.rpartition("/")[2]
  if SHARD_NAME.fullmatch(name):
    if not storage.exists(path):
      raise FileNotFoundError(f"no shard at {path}")
    return folder, [name]
  names = sorted(name for name in storage.names(path) if SHARD_NAME.fullmatch(name))
  if not names:
    raise FileNotFoundError(
      f"no shards in {path}; expected a cached task folder such as CACHE/shapes_videos, or one of its "
      "<split>.tfrecord-<i>-of-<n> files"
    )
  return path.rstrip("/"), names


def _draw(seed: int, name: str) -> bytes:
  """Random bytes that depend only on the arguments."""
  return hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]


def draw_shards(folder: str, names: Sequence[str], *, limit: int, seed: int) -> list[str]:
  """At most `limit` of the shards, sorted: those that the seed and their names select, empty ones last."""
  from walt_t5x.files import storage

  def order(name: str) -> tuple[bool, bytes]:
    return storage.size(storage.join(folder, name)) == 0, _draw(seed, name)

  return sorted(sorted(names, key=order)[:limit] if len(names) > limit else names)


def read_shards(folder: str, names: Sequence[str], *, rows: int, seed: int) -> Shards:
  """The statistics of all records of some shards, and a sample of `rows` records selected by the seed and their ids."""
  from beam_jobs.shards.shard_files import QUARANTINE
  from data import schema, tfrecord
  from walt_t5x.files import storage

  columns = collections.defaultdict[str, list[float]](list)
  sidecars = {name: storage.join(folder, f"{name}.sidecar.json") for name in names}
  sidecars = {n: storage.read_json(file) for n, file in sidecars.items() if storage.exists(file)}

  def drawn(name: str) -> Iterator[tuple[bytes, str, int, Any]]:
    """(random bytes, shard, index, record) of every record, whose statistics are added to the columns."""
    # The records of a quarantined shard are in a separate file that seqio does not find.
    held = sidecars.get(name, {}).get("quarantined")
    path = storage.join(folder, f"{QUARANTINE}{name}" if held else name)
    with storage.open_raw(path) as stream:
      for index, payload in enumerate(tfrecord.read_records(stream, name=path)):
        record = schema.decode(payload)
        columns["tokens"] += [len(ids) for ids in record.text_ids if len(ids)]
        columns["words"] += [len(caption.split()) for caption in record.captions]
        columns["captions"].append(len(record.captions))
        columns["kilobytes"].append(len(payload) / 1000)
        if record.modality == "video":
          columns["motion"].append(record.motion)
          columns["start_seconds"].append(record.start_seconds)
        if record.label != schema.NO_LABEL:
          columns["label"].append(record.label)
        yield _draw(seed, record.id), name, index, record

  records = itertools.chain.from_iterable(map(drawn, names))
  # At least one, because `nsmallest` reads nothing for none.
  chosen = heapq.nsmallest(max(rows, 1), records, key=lambda entry: entry[:3])[:rows]
  sample = [(name, record) for _, name, _, record in sorted(chosen, key=lambda e: e[1:3])]
  return Shards(folder=folder, names=names, sidecars=sidecars, columns=columns, sample=sample)


def read_ledgers(folder: str, names: Sequence[str]) -> list[dict[str, Any]]:
  """Rejected rows and dead letters of shards, with some examples of each reason, except those that a replay handled."""
  from beam_jobs.shards import replays
  from walt_t5x.files import storage

  folder = folder.rstrip("/")
  base, _, _ = folder.rpartition("/")[2].rpartition("_")
  try:
    history = [r for r in replays.read_all(storage.parent(folder), base) if r.finished]
  except replays.LedgerError:
    history = []  # Partly deleted: `beam_jobs.verify` reports it; here every dead letter is shown.
  ledgers = []
  for title, kind in (("Rejected", "rejected"), ("Dead letters", "dead")):
    counts = collections.Counter[str]()
    examples = collections.defaultdict[str, list[tuple[str, str]]](list)
    for name in names:
      path = storage.join(folder, f"{name}.{kind}.jsonl")
      if not storage.exists(path):
        continue
      match = SHARD_NAME.fullmatch(name)
      written_by = int(match["replay"] or 0) if match else 0
      with storage.open_raw(path) as lines:
        for line in lines:
          entry = json.loads(line)
          if kind == "dead" and not replays.is_current(entry["reason"], written_by, history):
            continue
          counts[entry["reason"]] += 1
          if len(examples[entry["reason"]]) < _EXAMPLES:
            text = f"{entry['stage']}: {entry['error']}"[:400]
            examples[entry["reason"]].append((str(entry["uri"])[:200], text))
    ledgers.append({"title": title, "counts": counts, "examples": examples})
  return ledgers


def latent_decoder(checkpoint: str, provenance: Any) -> Callable[[np.ndarray], np.ndarray]:
  """The decoder of the VAE that made a cache: uint8 (T, H, W, 3) of latents (t, h, w, c).

  Raises:
    ValueError: the checkpoint has another fingerprint.
  """
  import jax
  import jax.numpy as jnp
  from flax import traverse_util

  from beam_jobs.shards.encoders import build_vae, select_vae_params
  from walt_t5x.engine.checkpoints import load_params
  from walt_t5x.files.fingerprint import weights_fingerprint

  vae = build_vae(provenance.vae["config"])
  wanted, found = provenance.vae["fingerprint"], []
  for ema in (False, True):
    try:
      loaded = load_params(checkpoint, ema=ema)
    except (KeyError, ValueError):
      if not ema:
        raise
      continue  # A checkpoint without averaged weights.
    params = select_vae_params(vae, loaded, checkpoint)
    found.append(weights_fingerprint(traverse_util.flatten_dict(params, sep="/")))
    if found[-1] == wanted:
      break
  else:
    raise ValueError(
      f"--vae_checkpoint: {checkpoint} has the fingerprints {found}, the cache was made by {wanted} "
      f"({provenance.vae.get('checkpoint')}); set that checkpoint, or remove the flag"
    )
  variables = jax.tree.map(jnp.asarray, {"params": params})
  decode = jax.jit(
    lambda weights, z: vae.apply(weights, z.astype(jnp.float32)[None], method="decode")
  )
  return lambda latents: to_uint8(decode(variables, latents)[0])


def false_colors(latents: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Latents (t, h, w, c) as images: their first three principal components as red, green and blue.

  Returns uint8 (t, h, w, 3) each; black to white is -2 to 2 standard deviations.
  """
  flat = np.concatenate([np.asarray(z, np.float64).reshape(-1, z.shape[-1]) for z in latents])
  mean = flat.mean(axis=0)
  _, directions = np.linalg.eigh(np.cov(flat - mean, rowvar=False).reshape(len(mean), len(mean)))
  directions = directions[:, ::-1][:, :3]
  scale = ((flat - mean) @ directions).std(axis=0)
  pictures = []
  for z in latents:
    projected = (np.asarray(z, np.float64) - mean) @ directions / np.maximum(scale, 1e-12)
    padded = np.zeros((*projected.shape[:-1], 3))
    padded[..., : projected.shape[-1]] = projected
    pictures.append(np.rint(np.clip(127.5 + 63.75 * padded, 0, 255)).astype(np.uint8))
  return pictures


def source_clip(record: Any, sizes: Sequence[tuple[int, int]], root: str, origin: Any) -> Any:
  """The clip of a record, cut from its media again, or the reason why it is unavailable."""
  from beam_jobs.sources.members import read_media
  from beam_jobs.sources.rows import resolve
  from walt_t5x.media.clips import ClipSpec
  from walt_t5x.media.decoding import decode
  from walt_t5x.media.reading import MediaError
  from walt_t5x.media.rules import Rejected

  # A record that exists was accepted, by whatever flags.
  spec = ClipSpec(
    resolutions=tuple(sizes),
    num_frames=origin.num_frames,
    fps=origin.fps,
    allow_upscale=True,
    deinterlace=True,
  )
  start = record.start_seconds if record.modality == "video" else None
  try:
    content = read_media(resolve(record.uri, root), max_bytes=spec.max_bytes)
    crop = record.manifest_crop
    return decode(content, record.modality, spec, start_seconds=start, crop=crop).frames
  except (MediaError, Rejected, OSError, ValueError) as error:
    return f"{type(error).__name__}: {error}"


def psnr(first: np.ndarray, second: np.ndarray) -> float:
  """PSNR in dB of uint8 frames; 100 at most."""
  from walt_t5x.metrics.pixel_distances import psnr_of_error

  error = np.mean(np.square(first.astype(np.float64) - second)) / 255**2
  return float(psnr_of_error(error))
