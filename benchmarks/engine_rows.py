"""Input of the engine's benchmarks: a small cached task of random latents, and a trainer that logs every example."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x.engine.builtin.trainer import Trainer

LATENTS, IMAGE_LATENTS = "latents/3x8x8", "latents/1x8x8"
CHANNELS, TEXT_WIDTH, TOKENS = 8, 64, 6


def write_cache(folder: Path, *, videos: int, images: int, shards: int) -> None:
  """Writes `shapes_videos` and `shapes_images` like preprocessing, with normal latents instead of encoded media.

  Args:
    folder: the cache.
    videos: number of videos over all shards.
    images: number of images.
    shards: number of files of each task.
  """
  from data import provenance

  statistics = provenance.LatentStatistics(
    channels=CHANNELS, mean=[0.0] * CHANNELS, std=[1.0] * CHANNELS
  )
  kept = provenance.Provenance(
    vae={"fingerprint": "random"},
    text_encoder={"fingerprint": "random", "embedding_dim": TEXT_WIDTH},
    fps=8.0,
    num_frames=9,
    latents={LATENTS: statistics, IMAGE_LATENTS: statistics},
    null_ids=np.array([1]),
    null_embedding=np.full((1, TEXT_WIDTH), 0.5),
  )
  _write_task(folder / "shapes_videos", "video", LATENTS, (videos, shards), kept)
  _write_task(folder / "shapes_images", "image", IMAGE_LATENTS, (images, shards), kept)


def _write_task(
  folder: Path, modality: str, field: str, counts: tuple[int, int], kept: Any
) -> None:
  from data import provenance, schema, tfrecord

  rows, shards = counts
  folder.mkdir(parents=True)
  shape = (*schema.latents_shape(field), CHANNELS)
  for split, number in (("train", rows), ("validation", 2 * shards)):
    for shard in range(shards):
      records = [
        _record(modality, i, field=field, shape=shape, seed=(split == "train"))
        for i in range(shard, number, shards)
      ]
      name = f"{split}.tfrecord-{shard:05}-of-{shards:05}"
      (folder / name).write_bytes(b"".join(tfrecord.frame(schema.encode(r)) for r in records))
    info = {
      "num_shards": shards,
      "features": schema.seqio_features([field]),
      "seqio_version": "0.0.20",
    }
    (folder / f"info.{split}.json").write_text(json.dumps(info))
    (folder / f"stats.{split}.json").write_text(json.dumps({"examples": number}))
  (folder / provenance.FILE_NAME).write_text(kept.to_json())
  (folder / "COMPLETED").write_text("")


def _record(modality: str, index: int, *, field: str, shape: tuple[int, ...], seed: int) -> Any:
  from data import schema

  rng = np.random.default_rng([index, len(modality), seed])
  return schema.Record(
    id=f"{modality}{index}",
    uri=f"{index}",
    modality=modality,
    label=index,
    latents={field: rng.normal(size=shape)},
    captions=[f"caption {index}"],
    caption_weights=[1.0],
    text_ids=[np.arange(TOKENS)],
    text_embedding=[rng.normal(size=(TOKENS, TEXT_WIDTH))],
  )


class RecordingTrainer(Trainer):
  """Logs the examples of each step of this process in `<rows_folder>/rows_<process>.jsonl`.

  An example is identified by a hash of its latents. Lines are flushed before the step is dispatched, so a killed run
  has logged at least the examples that it trained on. The folder is local, by default `summary_dir`. Each step is
  `step_seconds` longer.
  """

  def __init__(
    self,
    *,
    summary_dir: str,
    rows_folder: str | None = None,
    step_seconds: float = 0.0,
    **arguments: Any,
  ):
    super().__init__(summary_dir=summary_dir, **arguments)
    self._step_seconds = step_seconds
    import jax

    path = Path(rows_folder or summary_dir) / f"rows_{jax.process_index()}.jsonl"
    self._rows = path.open("a", encoding="utf-8")

  def train(self, batch_iter: Any, num_steps: int, start_step: int | None = None, **more: Any):
    return super().train(self._noted(batch_iter, start_step), num_steps, start_step, **more)

  def _noted(self, batch_iter: Any, step: int) -> Iterator[Any]:
    for n, batch in enumerate(batch_iter, start=step):
      self._rows.write(json.dumps({"step": n, "rows": row_names(batch["latents"])}) + "\n")
      self._rows.flush()
      time.sleep(self._step_seconds)
      yield batch


def row_names(latents: Any) -> list[str]:
  """A name for each example of the batch in this process, in order."""
  parts = {
    shard.index[0].start or 0: np.asarray(shard.data) for shard in latents.addressable_shards
  }
  rows = [row for start in sorted(parts) for row in parts[start]]
  return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]


def rows_by_step(folder: Path, process: int = 0) -> dict[int, list[str]]:
  """Examples of each step; a step that was trained again after a kill must have the same examples.

  Raises:
    AssertionError: if it has other examples.
  """
  seen: dict[int, list[str]] = {}
  for line in (folder / f"rows_{process}.jsonl").read_text(encoding="utf-8").splitlines():
    try:
      note = json.loads(line)
    except ValueError:  # Truncated by the kill.
      continue
    before = seen.setdefault(note["step"], note["rows"])
    assert before == note["rows"], (
      f"step {note['step']} had other examples when it was trained again"
    )
  return seen
