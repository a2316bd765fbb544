"""Examples per second from cached shards through SeqIO to a batch, compared with bare parsing of the same files.

  python -m benchmarks.input_pipeline     # prints and writes benchmarks/input_pipeline.{md,json}

The shards contain base-stage records: latents 5x16x16x8 and one caption of 12 to 36 tokens of width 2048. Every variant
reads the same files from the page cache on one thread, in turns; figures are the median over the turns in CPU time.

  parse      bare: `tf.data.TFRecordDataset`, `tf.io.parse_single_example` of the features that the task reads (latents,
             packed text, lengths and weights of captions), batched. Its batch has the bytes of the records.
  all        the same with all features of the record, like SeqIO's own cache reader
  blocks     the fastest bare parser: records batched first, then one `tf.io.parse_example` per batch
  task       `data.tasks.video_task` through SeqIO as both engines read it (`engine.get_dataset`): a caption sampled by
             weight, padded to 64 tokens, with its mask; its batch has arrays
  mixture    the same in a `seqio.Mixture`, shuffled, with the 5 text slots of mixtures with stacks of images

Held: the task reaches at least 0.7 of the examples per second of the bare parser, although an example of its batch has
2.3 times the bytes. The step on the device unpacks the text and normalizes (`walt_t5x.models.denoiser_inputs`).
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results

HERE = Path(__file__).resolve().parent
WIDTH, LENGTH, LATENTS, BATCH = 2048, 64, (5, 16, 16, 8), 64
FIELD = "latents/5x16x16"


def write_cache(folder: Path, *, rows: int, shards: int) -> None:
  from data import provenance, schema, tfrecord

  folder.mkdir(parents=True)
  random = np.random.default_rng(0)
  for shard in range(shards):
    with (folder / f"train.tfrecord-{shard:05d}-of-{shards:05d}").open("wb") as file:
      for index in range(shard, rows, shards):
        tokens = 12 + index % 25
        record = schema.Record(
          id=f"{index:064x}",
          uri=f"gs://bucket/{index}.mp4",
          modality="video",
          latents={FIELD: random.normal(size=LATENTS)},
          captions=["a caption of some words"],
          caption_weights=[1.0],
          text_ids=[np.arange(2, 2 + tokens)],
          text_embedding=[random.normal(size=(tokens, WIDTH))],
          fps=8.0,
        )
        file.write(tfrecord.frame(schema.encode(record)))
  info = {
    "num_shards": shards,
    "features": schema.seqio_features([FIELD]),
    "seqio_version": "0.0.20",
  }
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text(json.dumps({"examples": rows}))
  kept = provenance.Provenance(
    vae={"fingerprint": "v"},
    text_encoder={"fingerprint": "t", "embedding_dim": WIDTH},
    fps=8.0,
    num_frames=17,
    latents={FIELD: provenance.LatentStatistics(channels=8, mean=[0.1] * 8, std=[1.1] * 8)},
    null_ids=np.array([1]),
    null_embedding=np.zeros((1, WIDTH), np.float32),
  )
  (folder / provenance.FILE_NAME).write_text(kept.to_json())
  (folder / "COMPLETED").write_text("")


def one_thread(dataset: Any) -> Any:
  import tensorflow as tf

  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  return dataset.with_options(options)


READ = (FIELD, "text_embedding", "caption_lengths", "caption_weights")


def bare(folder: Path, *, way: str) -> Any:
  """Batches of parsed bytes."""
  import tensorflow as tf

  from data import schema

  features = schema.seqio_features([FIELD])
  description = {}
  for name in features if way == "all" else READ:
    shape, dtype = features[name]["shape"], features[name]["dtype"]
    if shape != [None]:
      description[name] = tf.io.FixedLenFeature(shape, dtype)
    elif way == "blocks":
      description[name] = tf.io.RaggedFeature(dtype)
    else:
      description[name] = tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
  dataset = tf.data.TFRecordDataset(sorted(str(path) for path in folder.glob("train.tfrecord-*")))
  if way == "blocks":
    dataset = dataset.batch(BATCH, drop_remainder=True)
    return one_thread(dataset.map(lambda raw: tf.io.parse_example(raw, description)))
  dataset = dataset.map(lambda raw: tf.io.parse_single_example(raw, description))
  return one_thread(dataset.ragged_batch(BATCH, drop_remainder=True))


def through_seqio(*, mixture: bool) -> Any:
  from data import tasks
  from data.feature_converters import DenoiserFeatureConverter
  from walt_t5x.engine.builtin.datasets import DatasetConfig, get_dataset

  slots = LATENTS[0] if mixture else 1
  row = tasks.RowFormat(text_length=LENGTH, text_slots=slots)
  source = tasks.video_task(task="bench", latents=FIELD, row=row, shuffle_buffer_size=256)
  if mixture:
    source = tasks.CachedMixture("bench_mixture", [(source, 1.0)])
  lengths = {"latents": LATENTS[0], "is_image": 1, "text": slots, "text_mask": slots}
  config = DatasetConfig(
    mixture_or_task_name=source,
    task_feature_lengths=lengths,
    split="train",
    batch_size=BATCH,
    shuffle=mixture,
    seed=0,
    use_cached=True,
    trim_output_features=False,
  )
  converter = functools.partial(DenoiserFeatureConverter, text_dim=WIDTH)
  return one_thread(get_dataset(config, 0, 1, converter, num_epochs=1))


def seconds_of(dataset: Any) -> tuple[float, float, int]:
  """Wall-clock seconds, CPU seconds and examples of one pass."""
  clock, processor, batches = time.perf_counter(), time.process_time(), 0
  for _ in dataset:
    batches += 1
  return time.perf_counter() - clock, time.process_time() - processor, batches * BATCH


def measure(rows: int, turns: int) -> dict[str, Any]:
  import seqio
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary) / "bench_videos"
    write_cache(folder, rows=rows, shards=4)
    size = sum(path.stat().st_size for path in folder.glob("train.tfrecord-*"))
    seqio.set_global_cache_dirs([temporary])
    ways = {way: bare(folder, way=way) for way in ("parse", "all", "blocks")}
    ways |= {"task": through_seqio(mixture=False), "mixture": through_seqio(mixture=True)}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
      for name, dataset in ways.items():
        result = seconds_of(dataset)
        if turn:  # the first pass fills the page cache and builds the graph
          found[name].append(result)
  report: dict[str, Any] = {"rows": rows, "bytes_a_row": round(size / rows), "turns": turns}
  for name, passes in found.items():
    # CPU seconds: examples per second of one core, independent of other load.
    seconds = statistics.median(p[1] / p[2] for p in passes)
    report[name] = {
      "rows_per_second_core": round(1 / seconds, 1),
      "megabytes_per_second_core": round(size / rows / seconds / 1e6, 1),
      "rows_per_second_clock": round(1 / statistics.median(p[0] / p[2] for p in passes), 1),
    }
  report["ratios"] = {
    way: round(report["task"]["rows_per_second_core"] / report[way]["rows_per_second_core"], 3)
    for way in ("parse", "all", "blocks")
  }
  report["ratio"] = report["ratios"]["parse"]
  report["held"] = report["ratio"] >= 0.7
  return report


def table(report: dict[str, Any]) -> str:
  lines = ["| | examples/s per core | MB/s per core | examples/s, wall clock |"]
  lines += ["| --- | --- | --- | --- |"]
  for name in ("parse", "all", "blocks", "task", "mixture"):
    lines.append(f"| {name} | " + " | ".join(str(value) for value in report[name].values()) + " |")
  lines += [
    "",
    f"{report['rows']} examples of {report['bytes_a_row']:,} bytes, {report['turns']} turns",
  ]
  held = "held" if report["held"] else "NOT HELD"
  others = f"task / all: {report['ratios']['all']}, task / blocks: {report['ratios']['blocks']}"
  bar = f"task / parse: {report['ratio']} (bar 0.7): {held}; {others}"
  return "\n".join([*lines, "", bar]) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=2048)
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--output", default=str(HERE), help="folder of input_pipeline.{md,json}")
  args = parser.parse_args()
  report = measure(args.rows, args.turns)
  page = "# From cached shards to a batch\n\n" + table(report)
  results.write(args.output, "input_pipeline", page, report)
  return 0 if report["held"] else 1


if __name__ == "__main__":
  raise SystemExit(main())
