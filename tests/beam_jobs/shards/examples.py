"""Shards, plans and jobs made by hand, for the tests of this folder."""

import json

import numpy as np

from beam_jobs.shards import ledger, replays, settings, shard_files
from beam_jobs.shards.shard_files import ShardName
from beam_jobs.sources.rows import Row
from data import schema

NOTED = {"schema_version": schema.SCHEMA_VERSION, "any": "settings"}
DIGEST = settings.settings_digest(NOTED)
ORIGIN = {"vae": {"fingerprint": "v"}, "text_encoder": {}, "fps": 8.0, "num_frames": 9}
VIDEOS, IMAGES = "latents/3x2x2", "latents/1x2x2"


def row(name):
  return Row(
    uri=name,
    path=name,
    captions=("c",),
    caption_weights=(1.0,),
    label=-1,
    split="train",
    modality="video",
    start_seconds=None,
    end_seconds=None,
    raw={"uri": name},
  )


def record(seed, field=VIDEOS, tokens=(2, 3)):
  random = np.random.default_rng(seed)
  shape = (*schema.latents_shape(field), 4)
  return schema.Record(
    id=f"{seed:064x}",
    uri=str(seed),
    modality="video" if field == VIDEOS else "image",
    label=seed,
    latents={field: random.normal(seed, 1 + seed, shape).astype(np.float32)},
    captions=["c"] * len(tokens),
    caption_weights=[1.0] * len(tokens),
    text_ids=[np.ones(n, np.int32) for n in tokens],
    text_embedding=[random.normal(size=(n, 8)).astype(np.float32) for n in tokens],
  )


def write(output, shard, records=(), *, dead=(), rejected=(), band=None, rows="r", digest=DIGEST):
  options = {"settings_digest": digest, "rows_digest": rows, "band": band}
  with shard_files.ShardWriter(str(output), shard, **options) as writer:
    for record in records:
      # Captions of 3 tokens had 7.
      lengths = [7 if len(ids) == 3 else len(ids) for ids in record.text_ids]
      writer.write(record, token_lengths=lengths)
      for name in record.latents:
        writer.measure(name, 20.0 + len(record.captions))
    for number, reason in enumerate(dead):
      writer.fail(row(f"d{number}"), stage="decode", reason=reason, message="why")
    for number, reason in enumerate(rejected):
      writer.fail(row(f"r{number}"), stage="filter", reason=reason, message="why")
  return writer.sidecar


def plan(output, plan, task="toy", replay=""):
  text = json.dumps({str(shard): rows for shard, rows in plan.items()})
  (output / f"{task}{replay}.plan.json").write_text(text)
  (output / f"{task}.settings.json").write_text(json.dumps(NOTED))


def shard(index=0, count=2, *, task="toy_videos", split="train", **numbers):
  return ShardName(task=task, split=split, index=index, count=count, **numbers)


def job(output):
  """Three shards of two folders: 8 rows, 5 of them written, one folder with a second split."""
  output.mkdir(exist_ok=True)
  made = {
    shard(0): write(output, shard(0), [record(0), record(1)], dead=["missing"]),
    shard(1): write(output, shard(1), [record(2, tokens=(1,))], rejected=["small"]),
    shard(0, 1, split="validation"): write(
      output, shard(0, 1, split="validation"), [record(3)], dead=["x"]
    ),
    shard(0, 1, task="toy_images"): write(
      output, shard(0, 1, task="toy_images"), [record(4, IMAGES)]
    ),
  }
  plan(output, {shard: sidecar["rows"] for shard, sidecar in made.items()})
  return made


def finalize(output):
  return ledger.finalize(str(output), "toy", settings_digest=DIGEST, origin=ORIGIN)


def replay(number=1, reasons=("missing",), *, finished=True):
  return replays.Replay(
    number=number, reasons=reasons, buckets={"train": 1}, settings=NOTED, finished=finished
  )


def replayed(output, replay, records=(), *, dead=(), index=0):
  """The only shard of a replay, and its JSON files."""
  made = shard(index, 2, replay=replay.number)
  sidecar = write(output, made, records, dead=dead, digest=replay.digest)
  plan(output, {made: sidecar["rows"]}, replay=f".replay{replay.number:02d}")
  replay.write(str(output), "toy")
  return made, sidecar
