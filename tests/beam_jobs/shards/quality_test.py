"""Quality check: which rows are sampled, what a band rejects, and what readers see of quarantined shards."""

import json

import numpy as np
import pytest

from beam_jobs import preprocess, verify
from beam_jobs.shards import encoders, quality
from beam_jobs.shards.moments import Moments
from tests.beam_jobs.conftest import digests, good_rows, write_manifest
from walt_t5x.text.vocabulary import Vocabulary


@pytest.mark.parametrize("count", [0, 1, 4, 50])
def test_samples_are_the_smallest_keys_in_any_order(count):
  random = np.random.default_rng(count)
  keys = [f"{int(k):016x}" for k in random.integers(0, 2**62, 30)]
  for _ in range(5):
    random.shuffle(keys)
    samples = quality.Samples(count)
    for key in keys:
      samples.offer(key, lambda key=key: key)
    assert samples.rows() == sorted(keys)[:count]


def test_a_band_names_each_channel_that_leaves_it():
  values = np.random.default_rng(0).normal([0, 5], [1, 0.1], (1000, 2))
  sidecar = {
    "moments": {"latents/1x4x4": Moments.of(values).to_json()},
    "psnr": {"latents/1x4x4": {"count": 2, "sum": 50.0}},
  }
  assert quality.Band().violations(sidecar) == []
  assert quality.Band(min_psnr=25.0, mean=(-1, 6), std=(0.05, 2)).violations(sidecar) == []
  (mean, std, psnr) = quality.Band(min_psnr=25.1, mean=(-1, 1), std=(0.5, 2)).violations(sidecar)
  assert "mean of channel 1" in mean and "std of channel 1 is 0." in std
  assert "mean PSNR is 25.00 dB" in psnr
  (missing,) = quality.Band(min_psnr=1.0).violations(sidecar | {"psnr": {}})
  assert "--qa_samples" in missing


def test_a_quarantined_shard_is_named_not_read_and_released_by_a_wider_band(world, tmp_path):
  rows = good_rows(tmp_path, videos=6, images=0)[:5]
  argv = world.argv(
    write_manifest(tmp_path, rows), tmp_path / "out", qa_samples=2, resolutions="16x16"
  )
  first = preprocess.run(argv)
  before = digests(tmp_path / "out")
  assert sum(first["psnr"].values()) > 0 and first["quarantined"] == 0
  videos = tmp_path / "out" / "toy_videos"
  found = {s["shard"]: s for s in _sidecars(videos)}
  psnr = {name: min(v["sum"] / v["count"] for v in s["psnr"].values()) for name, s in found.items()}
  worst, best = sorted(psnr, key=psnr.get)
  bar = (psnr[worst] + psnr[best]) / 2
  # Only the shard whose quarantine changes is made again.
  result = preprocess.run([*argv, f"--qa_min_psnr={bar}"])
  assert result["quarantined_shards"] == [worst]
  assert result["quarantined"] == found[worst]["written"]
  assert result["written"] == found[best]["written"] and result["rows"] == 5
  assert _read_by_seqio(tmp_path / "out", 4) == found[best]["written"]
  assert (videos / f"quarantine.{worst.rpartition('/')[2]}").stat().st_size == found[worst]["bytes"]
  assert verify.main([str(videos)]) == 0
  preprocess.run(argv)
  assert digests(tmp_path / "out") == before
  assert _read_by_seqio(tmp_path / "out", 4) == 5


def _sidecars(folder):
  return [json.loads(path.read_text()) for path in sorted(folder.glob("*.sidecar.json"))]


def _read_by_seqio(output, length) -> int:
  import seqio

  from data import cached_tasks, tasks

  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(output)])
  seqio.utils._list_files_for_glob.cache_clear()
  cached_tasks.handle.cache_clear()
  try:
    task = tasks.video_task(
      task="toy", latents="latents/3x4x4", row=tasks.RowFormat(text_length=length)
    )
    ds = task.get_dataset(
      sequence_length=None,
      split="train",
      use_cached=True,
      shuffle=False,
      num_epochs=1,
      trim_output_features=False,
      try_in_mem_cache=False,
    )
    return sum(1 for _ in ds)
  finally:
    seqio.set_global_cache_dirs(before)
    cached_tasks.handle.cache_clear()


class _CountingEncoder:
  def __init__(self):
    self.texts = []

  def encode_text(self, texts):
    self.texts += texts
    return [(np.full(3, len(text)), np.full((3, 4), len(text), np.float32)) for text in texts]


@pytest.mark.parametrize("max_bytes", [1 << 20, 0])
def test_repeated_captions_of_a_shard_are_encoded_once(max_bytes):
  captions = ["a", "bb", "a", "ccc", "bb", "a", "dddd", "a"]
  inner = _CountingEncoder()
  cache = encoders.CaptionCache(inner, captions, max_bytes=max_bytes)
  result = [cache.encode(captions[i : i + 2]) for i in range(0, len(captions), 2)]
  for pair, texts in zip(result, zip(captions[::2], captions[1::2])):
    assert [len(text) for text in texts] == [int(ids[0]) for ids, _ in pair]
  if max_bytes:
    assert sorted(inner.texts) == ["a", "bb", "ccc", "dddd"]
  else:
    assert inner.texts.count("a") == 4
  assert not cache._kept


def test_a_shard_encodes_each_caption_once_and_counts_those_that_are_cut(
  world, tmp_path, monkeypatch, capsys
):
  rows = [row | {"captions": ["a red circle", "same"]} for row in good_rows(tmp_path)[:4]]
  seen = []
  encode = encoders.Encoders.encode_text
  monkeypatch.setattr(
    encoders.Encoders,
    "encode_text",
    lambda self, texts: (seen.extend(texts), encode(self, texts))[1],
  )
  argv = world.argv(
    write_manifest(tmp_path, rows),
    tmp_path / "out",
    num_shards=1,
    batch_size=1,
    resolutions="16x16",
    max_text_length=4,
  )
  result = preprocess.run(argv)
  assert sorted(seen) == ["", "a red circle", "same"]
  vocabulary = Vocabulary.load(f"{world.text}/spiece.model")
  lengths = [len(vocabulary.encode(text, 99)) for text in ("a red circle", "same")]
  assert lengths[0] == 4 < lengths[1]
  assert (result["captions"], result["captions_cut"]) == (8, 4)
  assert result["longest_caption"] == lengths[1]
  line = f"cut to --max_text_length: 4 of 8 (50.0%), the longest has {lengths[1]} tokens"
  assert line in capsys.readouterr().out
