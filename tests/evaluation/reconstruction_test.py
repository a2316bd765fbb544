"""Reconstructions on disk equal the tokenizer's own, byte for byte, for any batching, cutting and interruption."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import schema, tfrecord
from tests.beam_jobs.conftest import save_checkpoint, weights
from walt_t5x import evaluate, reconstruct
from walt_t5x.evaluation.media_files import find_media, is_ours
from walt_t5x.evaluation.reconstruction import ReconstructionFolder
from walt_t5x.generation import pixel_codec
from walt_t5x.generation.pixel_codec import PixelCodec
from walt_t5x.media import reading, writing
from walt_t5x.vae import streaming
from walt_t5x.vae.autoencoder import CausalVae

FIELDS = {
  "latent_channels": 4,
  "base_channels": 4,
  "channel_multipliers": (1, 1),
  "num_res_blocks": 0,
  "temporal_downsample": (True,),
}
FRAMES, SIDE = 5, 16


def _clips(count, *, frames=FRAMES, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, size=(count, frames, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  """All runs of this file have the weights of `tokenizer`, so they share compiled programs."""
  streams = {}

  def shared(vae, params, *, group):
    key = (repr(vae), group, str(jax.tree.leaves(params)[0].sharding))
    if key not in streams:
      streams[key] = streaming.VaeStream(vae, params, group=group)
    return streams[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pixel_codec, "VaeStream", shared)
    yield


@pytest.fixture(scope="module")
def tokenizer():
  vae, random = CausalVae(**FIELDS), np.random.default_rng(0)
  video = jax.ShapeDtypeStruct((1, 3, SIDE, SIDE, 3), jnp.float32)
  shapes = jax.eval_shape(vae.init, jax.random.key(0), video)["params"]
  return vae, jax.tree.map(lambda leaf: weights(leaf.shape, random), shapes)


def _by_hand(tokenizer, clips):
  vae, params = tokenizer
  made = [_one(vae, params, clip[None].astype(np.float32) / 255)[0] for clip in clips]
  return np.rint(np.clip(np.stack(made), 0, 1) * 255)


@functools.partial(jax.jit, static_argnums=0)
def _one(vae, params, x):
  return vae.apply({"params": params}, x)[0]


def _equal(made, expected):
  """Equal bytes, except for the rounding of sums that were compiled for another length."""
  np.testing.assert_allclose(made, expected, atol=1)
  assert np.mean(made != expected) < 0.01


def _together(groups):
  return tuple(np.concatenate(parts, axis=1) for parts in zip(*groups))


def test_a_lossless_file_restores_its_bytes_and_is_written_atomically(tmp_path):
  clip = _clips(1, frames=7)[0][:, :, :15]  # An odd width.
  for name, cuts in (("a", (7,)), ("b", (1, 3, 7))):
    with writing.lossless_writer(tmp_path / f"{name}.mkv", fps=25) as append:
      for start, end in zip((0, *cuts), cuts):
        append(clip[start:end])
      assert not (tmp_path / f"{name}.mkv").exists()
    found = reading.read_video(tmp_path / f"{name}.mkv")
    np.testing.assert_array_equal(found.frames, clip)
    assert found.fps == pytest.approx(25, rel=1e-3)
  assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
  for wrong, said in ((clip[:0], "no frames"), (clip.astype(np.float32), "float32")):
    with pytest.raises(ValueError, match=said):
      with writing.lossless_writer(tmp_path / "c.mkv", fps=8) as append:
        if len(wrong):
          append(clip[:1])
          append(wrong)
  with pytest.raises(ValueError, match=r"ends in \.mkv"):
    with writing.lossless_writer(tmp_path / "c.mp4", fps=8):
      pass
  assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]


def test_reconstructions_over_two_devices_equal_those_of_one_pass(tokenizer):
  mesh, rows = jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2]), 2
  codec = PixelCodec(*tokenizer, rows=rows, group=2, mesh=mesh)
  clips = _clips(3)
  expected = _by_hand(tokenizer, clips)
  for start in range(0, 3, rows):
    # One frame more than a complete group of two: it is not used.
    longer = [[*clip, clip[0]] for clip in clips[start : start + rows]]
    given, made = _together(codec.reconstruct(longer))
    np.testing.assert_array_equal(given, clips[start : start + rows])
    _equal(made, expected[start : start + rows])
  assert expected.std() > 5 and np.abs(expected - clips).max() > 20
  with pytest.raises(ValueError, match=rf"got {rows + 1} clips"):
    next(codec.reconstruct([clips[0]] * (rows + 1)))


def test_frames_are_read_only_as_far_as_needed(tokenizer):
  read = []

  def endless():
    while True:
      read.append(len(read))
      yield np.zeros((SIDE, SIDE, 3), np.uint8)

  groups = PixelCodec(*tokenizer, rows=1).reconstruct([endless()])
  seen = 0
  for _ in range(20):
    given, _ = next(groups)
    seen += given.shape[1]
    assert len(read) <= seen + 2
  assert seen == 1 + 19 * 2


@pytest.fixture
def command(tokenizer, tmp_path):
  """Flags for a folder of seven files, one of which is too short and one damaged."""
  lines = ["from __gin__ import dynamic_registration", "from walt_t5x.vae import autoencoder"]
  lines += [f"autoencoder.CausalVae.{name} = {value!r}" for name, value in FIELDS.items()]
  (tmp_path / "vae.gin").write_text("\n".join(lines) + "\n")
  save_checkpoint(tmp_path / "vae", {"vae": tokenizer[1]})
  for index, clip in enumerate(_clips(6, frames=8)):
    frames = clip[: 3 if index == 2 else 8]
    writing.write_video(tmp_path / "media" / "a" / f"{index}.mp4", frames, fps=8, crf=0)
  (tmp_path / "media" / "a" / "6.mp4").write_bytes(b"no video")
  flags = [f"--vae_gin_file={tmp_path / 'vae.gin'}", f"--vae_checkpoint={tmp_path / 'vae'}"]
  return [*flags, f"--media={tmp_path / 'media'}", "--frames=5", "--size=16x16", "--batch_size=2"]


def _run(capsys, *flags):
  reconstruct.main([*flags])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def _bytes(folder):
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in sorted(folder.rglob("*"))
    if file.is_file() and not file.name.startswith(("skipped", "scores"))
  }


def test_a_killed_run_resumes_and_jobs_share_one(command, tokenizer, tmp_path, capsys, monkeypatch):
  complete = tmp_path / "complete"
  result = _run(capsys, *command, f"--output={complete}")
  assert (result["clips"], result["made"], result["skipped"]) == (7, 5, 2)
  ledger = [json.loads(x) for x in (complete / "skipped-0-of-1.jsonl").read_text().splitlines()]
  assert [entry["name"] for entry in ledger] == ["a/2", "a/6"]
  assert "it has 3 frames" in ledger[0]["error"] and ledger[1]["uri"].endswith("a/6.mp4")

  originals = {m.name: m.read() for m in find_media(tmp_path / "media" / "a") if m.name != "6"}
  names = ["0", "1", "3", "4", "5"]
  expected = _by_hand(tokenizer, np.stack([originals[name][:5] for name in names]))
  for name, want in zip(names, expected):
    inputs, made = (reading.read_video(complete / kind / "a" / f"{name}.mkv").frames
                    for kind in ("inputs", "reconstructions"))  # fmt: skip
    np.testing.assert_array_equal(inputs, originals[name][:5])
    _equal(made, want)
  rows = [json.loads(line) for line in (complete / "manifest.jsonl").read_text().splitlines()]
  assert [row["name"] for row in rows] == [f"a/{name}" for name in names]
  assert result["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
  # The page of both, next to each other.
  assert (complete / "gallery.html").read_text().count("<article") == 5

  scores = evaluate.run([
    "--protocol=tokenizer", "--scores=psnr,ssim", "--frames=5", "--size=16x16",
    f"--samples={result['reconstructions']}", f"--reference={result['inputs']}",
  ])  # fmt: skip
  assert scores["scores"]["psnr"]["score"] == pytest.approx(result["psnr"], abs=1e-3)

  killed, calls = tmp_path / "killed", []
  original = ReconstructionFolder.write

  def dies(self, clips, groups):
    if len(calls) == 1:  # In the middle of the second batch.
      groups = iter([next(iter(groups))] + [None])
    calls.append(clips)
    return original(self, clips, groups)

  monkeypatch.setattr(ReconstructionFolder, "write", dies)
  with pytest.raises(TypeError):
    reconstruct.main([*command, f"--output={killed}"])
  monkeypatch.undo()
  left = [file.name for file in killed.rglob("*") if file.is_file()]
  assert "1.mkv" in left and "3.mkv" not in left and not any(".tmp" in name for name in left)
  # Two jobs share the rest of 0, 1, 3, 4 and 5.
  first = _run(capsys, *command, f"--output={killed}", "--shard=1/2")
  assert first["left_to_other_shards"] > 0 and not (killed / "manifest.jsonl").exists()
  last = _run(capsys, *command, f"--output={killed}", "--shard=0/2")
  assert (first["made"], last["made"], last["skipped"]) == (2, 1, 2)
  assert _bytes(complete) == _bytes(killed)

  with pytest.raises(SystemExit, match="started by another command"):
    reconstruct.main([*command, f"--output={complete}", "--fit=exact"])


def test_entire_files_are_streamed_and_caches_are_read(command, tokenizer, tmp_path, capsys):
  keep = [flag for flag in command if not flag.startswith(("--frames", "--media"))]
  result = _run(capsys, *keep, f"--media={tmp_path / 'media'}", f"--output={tmp_path / 'long'}")
  # Eight frames: seven are one and three groups of two. The file of three frames is used completely.
  shapes = {row["name"]: row["shape"][0] for row in ReconstructionFolder(
    tmp_path / "long").facts([f"a/{i}" for i in range(6)])}  # fmt: skip
  assert shapes == {f"a/{i}": 3 if i == 2 else 7 for i in range(6)} and result["skipped"] == 1

  clips = _clips(4, seed=3)
  cache = tmp_path / "cache"
  cache.mkdir()
  with (cache / "validation.tfrecord-00000-of-00001").open("wb") as stream:
    for index in (0, 1, 2, 3, 1):  # One of them twice.
      record = schema.Record(
        id=f"{index:064x}"[::-1], uri=f"{index}.mp4", modality="video", latents={}, fps=8.0,
        captions=[""], text_ids=[np.zeros(0, np.int32)], text_embedding=[np.zeros((0, 0))],
        caption_weights=[1.0], pixels={"pixels/5x16x16": clips[index]},
      )  # fmt: skip
      stream.write(tfrecord.frame(schema.encode(record)))
  (cache / "stats.validation.json").write_text(json.dumps({"examples": 5}))
  flags = [*command[:2], f"--cache={cache}", "--batch_size=2", "--gallery=0"]
  result = _run(capsys, *flags, f"--output={tmp_path / 'cached'}")
  assert (result["clips"], result["made"], result["repeated"]) == (4, 4, 1)
  made = {m.name: m.read() for m in find_media(result["reconstructions"])}
  assert is_ours(pathlib.Path(result["reconstructions"])) and not is_ours(tmp_path)
  for index, want in enumerate(_by_hand(tokenizer, clips)):
    _equal(made[f"{index:064x}"[::-1][:24]], want)
  for wrong, said in (
    ("--split=test", "no stats.test.json"),
    ("--pixels=pixels/9x16x16", r"records have the pixels \['pixels/5x16x16'\]"),
    ("--frames=5", "2"),
    ("--shard=2/2", "2"),
  ):
    with pytest.raises(SystemExit, match=said):
      reconstruct.main([*flags, f"--output={tmp_path / 'wrong'}", wrong])
  with pytest.raises(SystemExit, match="5 or 7 would fit"):
    reconstruct.main([*command, "--frames=6", f"--output={tmp_path / 'wrong'}"])
