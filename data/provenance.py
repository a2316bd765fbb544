"""Provenance of a cached task: reads, writes and checks the provenance.json next to its shards."""

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import schema
from walt_t5x.files import damage, storage
from walt_t5x.files.mismatch import Mismatch

FILE_NAME = "provenance.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStatistics:
  """Number of channels and per-channel moments of one latents field, over all images and videos of the run."""

  channels: int
  mean: Sequence[float]
  std: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """Contents of provenance.json.

  `vae`: fingerprint, config, checkpoint. `text_encoder`: fingerprint, embedding_dim, max_length, folder.
  `null_ids` (n,) and `null_embedding` (n, E): the encoded empty string.
  In a cache of pixels, `vae`, `text_encoder`, `latents` and the null text are empty; without text, `text_encoder` and
  the null text.
  """

  fps: float
  num_frames: int
  vae: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  text_encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  latents: Mapping[str, LatentStatistics] = dataclasses.field(default_factory=dict)
  null_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  null_embedding: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0, 0), np.float32)
  )
  posterior: str = "mean"
  schema_version: int = schema.SCHEMA_VERSION

  def write(self, folder: storage.PathLike) -> None:
    """Writes the file of a folder, with a digest; the same provenance gives the same bytes."""
    storage.write(storage.join(folder, FILE_NAME), damage.sealed_json(json.loads(self.to_json())))

  def to_json(self) -> str:
    """The provenance as JSON, with sorted keys."""
    null = np.ascontiguousarray(self.null_embedding, "<f4")
    text = {
      "ids": [int(i) for i in self.null_ids],
      "embedding": base64.b64encode(null.tobytes()).decode(),
    }
    tree = dataclasses.asdict(self) | {"null_text": text}
    del tree["null_ids"], tree["null_embedding"]
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"

  def statistics(self, fields: Mapping[str, str], *, task: str) -> dict[str, LatentStatistics]:
    """Feature of latents -> statistics of its field.

    Args:
      fields: feature -> field of the records.
      task: name of the cache in errors.

    Raises:
      Mismatch: if the cache has no such field, or a channel is constant.
    """
    for field in fields.values():
      if field not in self.latents:
        raise Mismatch(
          f"the cache of {task!r} has latents {sorted(self.latents)}, not {field!r}: set the task's `latents` to one "
          "of them, or preprocess with that resolution"
        )
      std = list(self.latents[field].std)
      if min(std) <= 0:
        raise Mismatch(
          f"the cache of {task!r}: {field} has a channel of standard deviation 0 ({std}), which cannot be normalized: "
          "the tokenizer does not use that channel; train it longer or with fewer channels"
        )
    return {name: self.latents[field] for name, field in fields.items()}

  @classmethod
  def from_json(cls, text: str | bytes, *, name: str = FILE_NAME) -> "Provenance":
    """Parses the contents of the file; raises Mismatch if the schema version differs or a field is missing, and
    Damaged if the file changed."""
    raw = damage.parsed(text, name=name)
    if raw.get("schema_version") != schema.SCHEMA_VERSION:
      raise Mismatch(
        f"{name}: schema_version: got {raw.get('schema_version')}, expected {schema.SCHEMA_VERSION}; "
        "preprocess the media again with this version of beam_jobs"
      )
    try:
      null = raw["null_text"]
      width = raw["text_encoder"]["embedding_dim"] if raw["text_encoder"] else 0
      embedding = np.frombuffer(base64.b64decode(null["embedding"]), "<f4")
      return cls(
        vae=raw["vae"],
        text_encoder=raw["text_encoder"],
        posterior=raw["posterior"],
        fps=raw["fps"],
        num_frames=raw["num_frames"],
        latents={field: LatentStatistics(**stats) for field, stats in raw["latents"].items()},
        null_ids=np.array(null["ids"], np.int32),
        null_embedding=embedding.reshape(len(null["ids"]), width).astype(np.float32),
      )
    except KeyError as error:
      raise Mismatch(f"{name}: field {error} is missing") from error


def in_terms_of(found: Provenance, run: str, *, task: str) -> Provenance:
  """The provenance of a cache, with the channel statistics of the data that a run was trained on.

  Fields that the run's data lacks keep their statistics. Those of the run that the cache lacks are kept too: a run that
  is fine-tuned on images alone still makes videos.

  Args:
    found: the provenance of the cache.
    run: folder of the run, or a checkpoint in it.
    task: name of the cache in errors.

  Raises:
    FileNotFoundError: the run has no provenance.
    Mismatch: the cache was made with another tokenizer, text encoder or posterior; names both.
  """
  folder = storage.run_folder(run)
  path = storage.join(folder, FILE_NAME)
  if not storage.exists(path):
    raise FileNotFoundError(
      f"no {FILE_NAME} in {folder}: expected the folder of a training run on cached latents, or a checkpoint in it"
    )
  trained = Provenance.from_json(storage.read(path), name=path)
  pairs = [("tokenizer", found.vae, trained.vae)]
  if found.text_encoder and trained.text_encoder:
    pairs.append(("text encoder", found.text_encoder, trained.text_encoder))
  for what, ours, theirs in pairs:
    if ours.get("fingerprint") != theirs.get("fingerprint"):
      raise Mismatch(
        f"the cache of {task!r} was made with the {what} {ours.get('fingerprint')}, the run {folder} was trained with "
        f"{theirs.get('fingerprint')}: preprocess again with the run's (from {_place(theirs)})"
      )
  if found.posterior != trained.posterior:
    raise Mismatch(
      f"the cache of {task!r} has latents of the posterior's {found.posterior}, the run {folder} was trained on its "
      f"{trained.posterior}: preprocess again"
    )
  return dataclasses.replace(found, latents={**found.latents, **trained.latents})


def _place(encoder: Mapping[str, Any]) -> str:
  return encoder.get("checkpoint") or encoder.get("folder") or "an unknown place"


def read_provenance(folder: str) -> Provenance:
  """Provenance of a cached task folder.

  Raises:
    FileNotFoundError: if the folder has none, with the command to run.
  """
  path = storage.join(folder, FILE_NAME)
  if not storage.exists(path):
    raise FileNotFoundError(
      f"no {FILE_NAME} in {folder}: expected the folder of one cached task (<output>/<task>_videos or "
      "<output>/<task>_images) that `python -m beam_jobs.preprocess` has finished"
    )
  return Provenance.from_json(storage.read(path), name=path)
