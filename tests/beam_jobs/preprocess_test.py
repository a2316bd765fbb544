"""The complete job with a VAE and a text encoder of random weights: outcomes of rows, and reruns."""

import io
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beam_jobs import preprocess
from beam_jobs.runners import job_flags
from beam_jobs.shards import encoders, ledger, make_shard, progress
from beam_jobs.sources import sampling, spec
from data import provenance, schema, tfrecord
from tests.beam_jobs import media
from tests.beam_jobs.conftest import digests, good_rows, write_manifest
from tests.data.captions import parse_caption
from walt_t5x.config import waiting
from walt_t5x.files import storage
from walt_t5x.media import writing
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode


def records(folder: pathlib.Path) -> list[schema.Record]:
  """Every record under a folder."""
  found = []
  for path in sorted(folder.rglob("*.tfrecord-*-of-?????")):
    found += map(schema.decode, tfrecord.read_records(io.BytesIO(path.read_bytes())))
  return found


def sidecars(folder: pathlib.Path) -> list[dict]:
  return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.sidecar.json"))]


def ledger_lines(folder: pathlib.Path, suffix: str) -> list[dict]:
  paths = sorted(folder.rglob(f"*.{suffix}.jsonl"))
  return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_bad_media_are_dead_letters_with_distinct_reasons_and_the_job_continues(finished):
  folder, _, result = finished
  dead = ledger_lines(folder / "out", "dead")
  reasons = {entry["uri"]: (entry["stage"], entry["reason"]) for entry in dead}
  assert reasons == {
    "cut.mp4": ("decode", "truncated"),
    "text.mp4": ("decode", "not_media"),
    "sound.mp4": ("decode", "no_video_stream"),
    "empty.jpg": ("decode", "empty"),
    "nowhere.mp4": ("read", "missing"),
    "{ no json": ("manifest", "bad_manifest_line"),
  }
  assert len({entry["reason"] for entry in dead}) == len(dead) == result["dead"]
  assert all(entry["row"]["uri"] == entry["uri"] for entry in dead if entry["stage"] != "manifest")


def test_every_row_ends_in_exactly_one_place(finished):
  folder, _, result = finished
  for sidecar in sidecars(folder / "out"):
    assert sidecar["written"] + sidecar["rejected"] + sidecar["dead"] == sidecar["rows"]
  assert (result["rows"], result["written"], result["rejected"], result["dead"]) == (16, 8, 2, 6)
  assert result["rejected_by_reason"] == {"duplicate": 1, "no_caption": 1}
  assert len(records(folder / "out")) == 8


def test_latents_are_the_posterior_means_of_the_decoded_pixels(finished, world):
  folder, _, _ = finished
  from walt_t5x.engine.checkpoints import load_params

  vae = encoders.build_vae(job_flags.vae_fields_of_gin(world.gin))
  params = jax.tree.map(jnp.asarray, load_params(world.checkpoint))
  encode = jax.jit(lambda video: vae.apply({"params": params}, video, method="encode").mean[0])
  spec = ClipSpec(resolutions=((32, 32),), num_frames=9, fps=8)
  for record in records(folder / "out"):
    clip = decode((folder / record.uri).read_bytes(), record.modality, spec)
    for frames in clip.frames.values():
      mean = encode(jnp.asarray(frames[None], jnp.float32) / 255)
      got = record.latents[schema.latents_field(*mean.shape[:3])].astype(np.float32)
      # A row alone and the same row in a batch of two may round differently.
      np.testing.assert_allclose(got, mean.astype(jnp.bfloat16), rtol=2**-7, atol=2**-10)


def test_text_is_the_encoders_output_within_a_percent(finished, world):
  folder, _, _ = finished
  from walt_t5x.text.encoder import TextEncoder

  encoder = TextEncoder.load(world.text)
  for record in records(folder / "out"):
    ids = encoder.tokenize(record.captions, 64)
    for got_ids, got, want_ids, want in zip(
      record.text_ids, record.text_embedding, ids, encoder.encode(ids), strict=True
    ):
      np.testing.assert_array_equal(got_ids, want_ids)
      relative = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
      assert relative.max() < 0.01
  origin = provenance.read_provenance(str(folder / "out" / "toy_videos"))
  (null,) = encoder.encode(encoder.tokenize([""], 64))
  np.testing.assert_allclose(origin.null_embedding, null, atol=np.abs(null).max() / 250)


def test_statistics_are_those_of_images_and_videos_together(finished):
  folder, _, _ = finished
  everything = records(folder / "out")
  for task, frames in (("toy_images", 1), ("toy_videos", 3)):
    origin = provenance.read_provenance(str(folder / "out" / task))
    for size in (4, 8):
      values = [
        latents.astype(np.float64).reshape(-1, 8)
        for record in everything
        for name, latents in record.latents.items()
        if schema.latents_shape(name)[1] == size
      ]
      found = origin.latents[schema.latents_field(frames, size, size)]
      np.testing.assert_allclose(found.mean, np.concatenate(values).mean(axis=0), rtol=1e-10)
      np.testing.assert_allclose(found.std, np.concatenate(values).std(axis=0), rtol=1e-10)


@pytest.mark.parametrize(
  ("task", "split", "rows"), [("videos", "train", 4), ("images", "train", 3)]
)
def test_seqio_reads_the_folder_as_a_cached_task(finished, task, split, rows):
  folder, _, _ = finished
  import seqio
  import tensorflow as tf

  frames = {"videos": 3, "images": 1}[task]
  field, shape = f"latents/{frames}x8x8", (frames, 8, 8, 8)

  def parse(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
      lambda example: {
        "latents": tf.cast(schema.parse_latents(example, field, shape), tf.float32),
        "text": parse_caption(example, index=0, embedding_dim=64)["text_embedding"],
        "uri": example["uri"],
      }
    )

  reader = seqio.Task(
    f"toy_{task}",
    source=seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=schema.SPLITS),
    preprocessors=[seqio.CacheDatasetPlaceholder(required=True), parse],
    output_features={
      "latents": seqio.ContinuousFeature(rank=4, dtype=tf.float32),
      "text": seqio.ContinuousFeature(rank=2, dtype=tf.float32),
    },
  )
  seqio.add_global_cache_dirs([str(folder / "out")])
  dataset = reader.get_dataset(None, split, use_cached=True, shuffle=False, try_in_mem_cache=False)
  written = {record.uri: record for record in records(folder / "out" / f"toy_{task}")}
  examples = list(dataset.as_numpy_iterator())
  assert len(examples) == rows
  for example in examples:
    record = written[example["uri"].decode()]
    np.testing.assert_array_equal(example["latents"], record.latents[field].astype(np.float32))
    np.testing.assert_array_equal(example["text"], record.text_embedding[0])


def test_a_rerun_changes_no_byte_and_reads_no_medium(finished, monkeypatch):
  folder, argv, result = finished
  before = digests(folder / "out")
  monkeypatch.setattr(
    make_shard, "load_row", lambda *_: pytest.fail("a complete shard was read again")
  )
  again = preprocess.run(argv)
  assert digests(folder / "out") == before
  assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_fresh_run_gives_the_same_bytes(finished, world):
  folder, _, _ = finished
  preprocess.run(world.argv(folder / "manifest.jsonl", folder / "second", decode_threads=1))
  assert digests(folder / "second") == digests(folder / "out")


def test_no_file_depends_on_how_far_ahead_rows_are_loaded(tmp_path):
  rows = good_rows(tmp_path, videos=1, images=0)
  # The first kind fails before it is loaded, the second when it is.
  rows += [{"uri": f"{i}.mp4", "label": "cat"} for i in range(30)]
  rows += [{"uri": f"nowhere{i}.mp4", "caption": "x"} for i in range(30)]
  argv = ["--task=t", "--content=pixels", "--resolutions=16x16", "--num_frames=9", "--num_shards=1"]
  argv += [f"--manifest={write_manifest(tmp_path, rows)}", "--decode_isolation=thread"]
  for threads in (1, 8):
    output = tmp_path / f"out{threads}"
    preprocess.run([*argv, f"--output={output}", f"--decode_threads={threads}"])
  assert digests(tmp_path / "out1") == digests(tmp_path / "out8")
  assert len(ledger_lines(tmp_path / "out1", "dead")) == 60


def test_only_a_deleted_or_cut_shard_is_made_again(finished, monkeypatch):
  folder, argv, _ = finished
  before = digests(folder / "out")
  made = []
  process = make_shard.shard_files.ShardWriter.__enter__
  monkeypatch.setattr(
    make_shard.shard_files.ShardWriter,
    "__enter__",
    lambda self: (made.append(str(self._shard)), process(self))[1],
  )
  videos = folder / "out" / "toy_videos"
  (videos / "train.tfrecord-00001-of-00002").unlink()
  cut = videos / "validation.tfrecord-00000-of-00001"
  cut.write_bytes(cut.read_bytes()[:-1])
  (folder / "out" / "toy_images" / "train.tfrecord-00000-of-00002.sidecar.json").write_bytes(b"")
  preprocess.run(argv)
  assert sorted(made) == [
    "toy_images/train.tfrecord-00000-of-00002",
    "toy_videos/train.tfrecord-00001-of-00002",
    "toy_videos/validation.tfrecord-00000-of-00001",
  ]
  assert digests(folder / "out") == before


def test_dead_letters_are_retried_on_request(tmp_path, world, capsys):
  clip = media.video(height=32, width=32)
  rows = [{"uri": "late.mp4", "caption": "x"}, {"uri": "early.mp4", "caption": "x"}]
  (tmp_path / "early.mp4").write_bytes(clip)
  argv = world.argv(write_manifest(tmp_path, rows), tmp_path / "out", num_shards=1)
  assert preprocess.run(argv)["dead_by_reason"] == {"missing": 1}
  assert "the same command with --retry_dead reads them" in capsys.readouterr().out
  (tmp_path / "late.mp4").write_bytes(clip)
  assert preprocess.run(argv)["dead"] == 1
  assert preprocess.run([*argv, "--retry_dead"])["dead"] == 0
  assert len(records(tmp_path / "out")) == 2
  assert ledger_lines(tmp_path / "out", "dead") == []


def test_rows_added_to_the_manifest_are_made_and_the_rest_is_kept(world, tmp_path):
  rows = good_rows(tmp_path, videos=5, images=0)[:4]  # the fifth is the validation split
  argv = world.argv(write_manifest(tmp_path, rows[:3]), tmp_path / "out", num_shards=3)
  preprocess.run(argv)
  write_manifest(tmp_path, rows)
  assert preprocess.run(argv)["written"] == 4
  fresh = world.argv(tmp_path / "manifest.jsonl", tmp_path / "fresh", num_shards=3)
  preprocess.run(fresh)
  assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_same_media_with_another_caption_or_window_is_another_record(world, tmp_path):
  (tmp_path / "a.mp4").write_bytes(media.video(num_frames=48))
  rows = [
    {"uri": "a.mp4", "caption": "x"},
    {"uri": "a.mp4", "caption": "y"},
    {"uri": "a.mp4", "caption": "x", "start_seconds": 0.25},
    {"uri": "a.mp4", "caption": "x"},
  ]
  result = preprocess.run(world.argv(write_manifest(tmp_path, rows), tmp_path / "out"))
  assert (result["written"], result["rejected_by_reason"]) == (3, {"duplicate": 1})
  assert len({record.id for record in records(tmp_path / "out")}) == 3


def test_filters_labels_and_psnr(world, tmp_path):
  (tmp_path / "moving.mp4").write_bytes(media.video())
  (tmp_path / "still.mp4").write_bytes(media.video(step=0))
  rows = [
    {"uri": "moving.mp4", "label": 4},
    {"uri": "still.mp4", "caption": "x"},
  ]
  argv = world.argv(
    write_manifest(tmp_path, rows),
    tmp_path / "out",
    min_motion=0.001,
    qa_samples=3,
    resolutions="16x16",
  )
  result = preprocess.run(argv)
  assert result["rejected_by_reason"] == {"low_motion": 1}
  (record,) = records(tmp_path / "out")
  assert (record.label, list(record.captions)) == (4, [""])
  assert set(result["psnr"]) == {"latents/3x4x4"}
  assert all(0 < value < 40 for value in result["psnr"].values())


def test_latents_that_are_not_finite_are_dead_letters(world, tmp_path, monkeypatch):
  rows = good_rows(tmp_path, videos=3, images=0)
  start = encoders.Encoders.start_encode

  def poisoned(self, pixels, count):
    latents = start(self, pixels, count)
    dark = pixels[:, 0, ..., 0].mean(axis=(1, 2)) < 55  # only the first clip
    return jnp.where(dark[:, None, None, None, None], jnp.nan, latents)

  monkeypatch.setattr(encoders.Encoders, "start_encode", poisoned)
  result = preprocess.run(world.argv(write_manifest(tmp_path, rows), tmp_path / "out"))
  assert result["dead_by_reason"] == {"nonfinite_latents": 1}
  assert result["written"] == 2
  for sidecar in sidecars(tmp_path / "out"):
    for moments in sidecar["moments"].values():
      assert np.isfinite(moments["sum"]).all()


@pytest.mark.parametrize(("limit", "about"), [(100, ""), (10, "about ")])
def test_progress_shows_the_rows_of_a_table(tmp_path, monkeypatch, capfd, limit, about):
  table = tmp_path / "rows.csv"
  table.write_text("uri,caption\n" + "".join(f"clip{i:03d}.mp4,a circle\n" for i in range(40)))
  monkeypatch.setattr(preprocess, "_LINES_TO_COUNT", limit)
  argv = ["--output=o", "--task=t", "--content=pixels", "--resolutions=16x16"]
  args, _ = job_flags.parse([f"--manifest={table}", *argv], description=None)
  found = preprocess.expected_rows(spec.source_of(args, scores=()))
  rows, exact = found
  assert exact == (not about) and abs(rows - 40) <= (0 if exact else 4)
  monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
  monkeypatch.setattr(waiting, "PACE", waiting.Pace())
  with waiting.reporting(progress.line_of(found, lambda: (0, 0))):
    time.sleep(0.2)
  (line,) = capfd.readouterr().err.splitlines()
  assert line == f"preprocess: 0/{about}{rows} rows, 0.0 rows/s, starting"


def test_rows_are_not_counted_in_a_manifest_that_cannot_be_read(tmp_path, monkeypatch):
  argv = ["--output=o", "--task=t", "--content=pixels", "--resolutions=16x16"]
  manifest = write_manifest(tmp_path, [{"uri": "a.mp4"}])
  args, _ = job_flags.parse([f"--manifest={manifest}", *argv], description=None)
  source = spec.source_of(args, scores=())

  def failing(error):
    def lines_of(*_, **__):
      raise error

    monkeypatch.setattr(sampling, "lines_of", lines_of)
    return preprocess.expected_rows(source)

  assert preprocess.expected_rows(source) == (1, True)
  assert failing(OSError(5, "Input/output error")) is None
  with pytest.raises(ZeroDivisionError):  # A bug.
    failing(ZeroDivisionError())


def test_rows_on_disk_are_those_of_closed_shards(world, tmp_path):
  argv = world.argv(write_manifest(tmp_path, good_rows(tmp_path, videos=4, images=4)), tmp_path)
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 0
  preprocess.run(argv)
  sidecars = sorted(tmp_path.glob("toy_*/*.sidecar.json"))
  left = 8
  for path in sidecars:
    assert ledger.rows_on_disk(str(tmp_path), "toy") == left
    left -= json.loads(path.read_text())["rows"]
    path.unlink()
  assert len(sidecars) > 1 and ledger.rows_on_disk(str(tmp_path), "toy") == left == 0


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path):
  path = str(tmp_path / "shard")
  with pytest.raises(RuntimeError), storage.writer(path) as stream:
    stream.write(b"half")
    raise RuntimeError
  assert list(tmp_path.iterdir()) == []


def test_workers_import_neither_tensorflow_nor_seqio():
  program = (
    "import sys, walt_t5x.engine.checkpoints, walt_t5x.text.encoder, walt_t5x.vae.autoencoder\n"
    "import beam_jobs.runners.pipeline, beam_jobs.shards.encoders, walt_t5x.media.decoding\n"
    "print(sorted({'tensorflow', 'seqio', 't5x', 'gin'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_help_needs_none_of_the_heavy_packages():
  program = (
    "import sys; from beam_jobs import preprocess\n"
    "try: preprocess.main(['--help'])\n"
    "except SystemExit: pass\n"
    "print(sorted({'jax', 'apache_beam', 'tensorflow', 'seqio', 'av'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert "--vae_gin_file" in done.stdout
  assert done.stdout.splitlines()[-1] == "[]"


def test_pixels_are_the_decoded_frames_and_need_no_encoders(tmp_path):
  frames = np.zeros((9, 32, 32, 3), np.uint8)
  frames[:] = np.linspace(20, 230, 9).astype(np.uint8)[:, None, None, None]
  writing.write_video(tmp_path / "ramp.mp4", frames, fps=8, crf=0)
  (tmp_path / "manifest.jsonl").write_text('{"uri": "ramp.mp4", "captions": ["a ramp"]}\n')
  flags = [
    f"--manifest={tmp_path / 'manifest.jsonl'}",
    f"--output={tmp_path / 'cache'}",
    "--task=t",
    "--content=pixels",
    "--resolutions=32x32",
    "--num_frames=9",
    "--num_shards=1",
  ]
  result = preprocess.run(flags)
  assert (result["written"], result["dead"]) == (1, 0)
  (record,) = records(tmp_path / "cache")
  assert not record.latents and record.captions == ["a ramp"]
  error = record.pixels["pixels/9x32x32"].astype(int) - frames
  assert np.abs(error).max() <= 3
  with pytest.raises(SystemExit):
    preprocess.run([*flags, "--text_encoder=somewhere"])


def test_without_text_the_latents_are_those_of_a_cache_with_text(tmp_path, world, capsys):
  (tmp_path / "a.mp4").write_bytes(media.video())
  manifest = tmp_path / "rows.jsonl"
  manifest.write_text('{"uri": "a.mp4", "caption": "a clip", "label": 3}\n')
  flags = world.argv(manifest, tmp_path / "none", num_shards=1)
  flags = [flag for flag in flags if "text_encoder" not in flag]
  with pytest.raises(SystemExit):
    preprocess.run(flags)
  assert "--text_encoder is needed for --content=latents, or --no_text" in capsys.readouterr().err
  preprocess.run([*flags, "--no_text"])
  preprocess.run(world.argv(manifest, tmp_path / "text", num_shards=1))
  (with_text,), (without,) = records(tmp_path / "text"), records(tmp_path / "none")
  assert without.captions == with_text.captions and without.label == 3
  assert [ids.size for ids in without.text_ids] == [0] < [ids.size for ids in with_text.text_ids]
  for field, latents in with_text.latents.items():
    np.testing.assert_array_equal(without.latents[field], latents)
  origin = provenance.read_provenance(str(tmp_path / "none/toy_videos"))
  assert origin.text_encoder == {} and origin.null_ids.size == 0 and origin.vae["fingerprint"]
