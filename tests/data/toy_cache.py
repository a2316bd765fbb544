"""A small cache that is written record by record, and its examples as SeqIO reads them."""

import hashlib
import json

import numpy as np
import seqio

from data import cached_tasks, provenance, schema, tasks, tfrecord
from data.feature_converters import DenoiserFeatureConverter
from walt_t5x.models.denoiser_inputs import unpack_and_normalize

WIDTH, CHANNELS, LENGTH = 6, 2, 5
MEAN, STD = [1.0, -2.0], [0.5, 3.0]
ROW = tasks.RowFormat(text_length=LENGTH)


def record_id(modality, index):
  return hashlib.sha256(f"{modality}{index}".encode()).hexdigest()


def toy_record(modality, index):
  rng = np.random.default_rng([index, modality == "image"])
  t = 1 if modality == "image" else 3
  arrays = {
    schema.latents_field(t, size, size): rng.normal(MEAN, STD, (t, size, size, CHANNELS))
    for size in (4, 8)
  }
  tokens = 1 + index % LENGTH
  return schema.Record(
    id=record_id(modality, index),
    uri=f"{index}",
    modality=modality,
    label=index,
    latents=arrays,
    captions=[f"caption {index}"],
    caption_weights=[1.0],
    text_ids=[np.arange(tokens)],
    text_embedding=[np.full((tokens, WIDTH), index + 1.0)],
  )


def write_task(folder, records, kept):
  folder.mkdir(parents=True)
  fields = sorted({name for record in records for name in (*record.latents, *record.pixels)})
  (folder / "train.tfrecord-00000-of-00001").write_bytes(
    b"".join(tfrecord.frame(schema.encode(record)) for record in records)
  )
  info = {"num_shards": 1, "features": schema.seqio_features(fields), "seqio_version": "0.0.20"}
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text(json.dumps({"examples": len(records)}))
  (folder / provenance.FILE_NAME).write_text(kept.to_json())
  (folder / "COMPLETED").write_text("")


def toy_provenance(fields, *, vae="v"):
  statistics = provenance.LatentStatistics(channels=CHANNELS, mean=MEAN, std=STD)
  return provenance.Provenance(
    vae={"fingerprint": vae},
    text_encoder={"fingerprint": "t", "embedding_dim": WIDTH},
    fps=8.0,
    num_frames=9,
    latents=dict.fromkeys(fields, statistics),
    null_ids=np.array([1]),
    null_embedding=np.full((1, WIDTH), 0.5),
  )


class cache_dirs:
  """The SeqIO cache folders of one test."""

  def __init__(self, *folders):
    self._folders = list(folders)

  def __enter__(self):
    self._before = list(seqio.get_global_cache_dirs())
    seqio.set_global_cache_dirs(self._folders)

  def __exit__(self, *_):
    seqio.set_global_cache_dirs(self._before)
    cached_tasks.handle.cache_clear()


def rows_of(task, **kwargs):
  options = {"split": "train", "use_cached": True, "shuffle": False, "num_epochs": 1, "seed": 0}
  options |= {"sequence_length": None, "trim_output_features": False, "try_in_mem_cache": False}
  return list(task.get_dataset(**(options | kwargs)).as_numpy_iterator())


def model_rows_of(task, **kwargs):
  """Examples as the model uses them: through the feature converter, then `unpack_and_normalize`."""
  options = {"split": "train", "use_cached": True, "shuffle": False, "num_epochs": 1, "seed": 0}
  options |= {"sequence_length": None, "trim_output_features": False, "try_in_mem_cache": False}
  ds = task.get_dataset(**(options | kwargs))
  lengths = {name: (*spec.shape, 1)[0] for name, spec in ds.element_spec.items()}
  converter = DenoiserFeatureConverter(
    text_dim=WIDTH if "text" in lengths else 0,
    label="label" in lengths,
    low_resolution="low_resolution" in lengths,
  )
  (batch,) = converter(ds, lengths).batch(1000).as_numpy_iterator()
  batch = unpack_and_normalize(batch, task.walt_constants.moments)
  batch = {name: np.asarray(value) for name, value in batch.items()}
  return [{name: value[i] for name, value in batch.items()} for i in range(len(batch["latents"]))]
