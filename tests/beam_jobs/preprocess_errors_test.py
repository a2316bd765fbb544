"""The complete job stops, with a message, on wrong flags, other settings or encoders, and missing or damaged files."""

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from beam_jobs import preprocess, replay, verify
from beam_jobs.runners import job_flags, running
from beam_jobs.shards import ledger, settings
from data.provenance import read_provenance
from tests.beam_jobs.conftest import digests, good_rows, save_checkpoint, write_manifest
from tests.beam_jobs.preprocess_test import records
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch


def test_a_folder_in_which_another_launcher_runs_is_left_alone(finished, capsys):
  folder, _, _ = finished
  command = [f"--output={folder / 'out'}", "--task=toy"]
  sizes = ["--content=pixels", "--resolutions=16x16"]
  with running.alone("preprocess", str(folder / "out"), "toy"):
    before = digests(folder / "out")
    for program, argv in (
      (preprocess, [f"--manifest={folder / 'manifest.jsonl'}", *sizes]),
      (replay, [f"--media_root={folder}", "--all"]),
    ):
      assert program.main([*command, *argv]) == 2
      told = capsys.readouterr().err
      assert f"{folder / 'out'} is in use by preprocess: process {os.getpid()} on" in told
    assert digests(folder / "out") == before


def test_other_settings_in_the_same_folder_are_rejected_by_field(finished, world):
  folder, _, _ = finished
  manifest = folder / "manifest.jsonl"
  with pytest.raises(Mismatch, match=r"clip\.fps: the folder has 8\.0, this run 6"):
    preprocess.run(world.argv(manifest, folder / "out", fps=6))
  with pytest.raises(Mismatch, match=r"num_shards\.train: .* 2, this run 3"):
    preprocess.run(world.argv(manifest, folder / "out", num_shards=3))


def test_another_vae_is_rejected_by_its_fingerprint(finished, world, tmp_path):
  folder, _, _ = finished
  from walt_t5x.engine.checkpoints import load_params

  params = load_params(world.checkpoint)
  # A trained checkpoint also has a discriminator; the VAE's parameters are selected.
  leaf = params["encoder"]
  while not hasattr(next(iter(leaf.values())), "shape"):
    leaf = next(iter(leaf.values()))
  leaf[next(iter(leaf))] += 1
  save_checkpoint(tmp_path / "other", {"vae": params, "discriminator": {"w": np.zeros(3)}})
  argv = world.argv(folder / "manifest.jsonl", folder / "out", vae_checkpoint=tmp_path / "other")
  with pytest.raises(Mismatch, match=r"vae\.fingerprint"):
    preprocess.run(argv)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"manifest": "/nowhere.jsonl"}, r"--manifest: no file at /nowhere\.jsonl"),
    ({"vae_gin_file": "/nowhere.gin"}, r"--vae_gin_file: no file at /nowhere\.gin"),
    ({"vae_checkpoint": "/nowhere"}, "no complete checkpoint in /nowhere"),
    ({"text_encoder": "/nowhere"}, r"No config\.json in /nowhere"),
    ({"num_frames": 10}, r"got 10 frames, expected 1 \+ k \* 4"),
    ({"resolutions": "18x18"}, "got height 18, expected a multiple of 4"),
    ({"filter": "aesthetic>>5"}, "got 'aesthetic>>5', expected NAME OP NUMBER"),
    ({"no_such_flag": 1}, "unknown flags .*no_such_flag"),
  ],
)
def test_a_wrong_flag_is_rejected_before_any_work(world, tmp_path, flags, message):
  manifest = write_manifest(tmp_path, [{"uri": "a.mp4", "caption": "x"}])
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    preprocess.run(world.argv(**{"manifest": manifest, "output": tmp_path / "out"} | flags))
  assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_vae_names_the_parameter(world, tmp_path):
  gin = tmp_path / "wide.gin"
  gin.write_text(pathlib.Path(world.gin).read_text() + "autoencoder.CausalVae.base_channels = 8\n")
  manifest = write_manifest(tmp_path, [{"uri": "a.mp4", "caption": "x"}])
  with pytest.raises(Mismatch, match=r"parameters differ, first .*checkpoint \("):
    preprocess.run(world.argv(manifest, tmp_path / "out", vae_gin_file=gin))


def test_a_gin_file_without_a_vae_is_rejected(tmp_path):
  gin = tmp_path / "other.gin"
  gin.write_text("x = 1\n")
  with pytest.raises(ValueError, match=r"other\.gin binds no CausalVae"):
    job_flags.vae_fields_of_gin(str(gin))


def test_runs_that_write_nothing_leave_nothing_to_the_corrected_command(tmp_path):
  manifest = write_manifest(tmp_path, good_rows(tmp_path, videos=2, images=0))
  (tmp_path / "wrong").mkdir()
  other = write_manifest(tmp_path / "wrong", [{"uri": "nowhere.png", "caption": "x"}])
  flags = {"manifest": manifest, "output": tmp_path / "out", "task": "toy", "content": "pixels"}
  flags |= {"resolutions": "16x16", "num_frames": 9, "num_shards": 1, "decode_isolation": "thread"}

  def run(**changes):
    return preprocess.run([f"--{name}={value}" for name, value in (flags | changes).items()])

  for wrong in (
    {"media_root": "/nowhere"},
    {"filter": "seconds>=99", "num_shards": 3},
    {"manifest": other},  # Makes a folder that the corrected command does not have.
  ):
    with pytest.raises(ledger.LedgerError, match="keeps nothing of this run"):
      run(**wrong)
    assert not list(tmp_path.glob("out/*/COMPLETED"))
  assert run()["written"] == 2
  run(output=tmp_path / "fresh")
  assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_run_that_writes_nothing_fails_and_says_why(world, tmp_path):
  manifest = write_manifest(tmp_path, [{"uri": "a.mp4", "caption": "x"}])
  with pytest.raises(
    ledger.LedgerError,
    match=r"none of 1 rows was written: missing 1\n.*\n.*see .*/\*/\*\.dead\.jsonl$",
  ):
    preprocess.run(world.argv(manifest, tmp_path / "out"))
  assert not (tmp_path / "out" / "toy_videos" / "COMPLETED").exists()


def test_the_flags_that_class_names_in_a_label_column_need_are_printed(tmp_path):
  rows = good_rows(tmp_path, videos=2, images=0)
  names = [f"class {i}" for i in range(len(rows))]
  rows = [row | {"label": name, "split": "train"} for row, name in zip(rows, names)]
  argv = [
    f"--manifest={write_manifest(tmp_path, rows)}",
    f"--output={tmp_path / 'out'}",
    "--task=t",
  ]
  argv += ["--content=pixels", "--resolutions=16x16", "--num_frames=9", "--decode_isolation=thread"]
  with pytest.raises(ledger.LedgerError) as told:
    preprocess.run(argv)
  added = re.findall(r"--[a-z_]+[= ]\S+", str(told.value).replace(",", " "))
  assert len(added) == 2
  file = tmp_path / "names.txt"
  file.write_text("\n".join(names))
  added = " ".join(added).replace("FILE", str(file)).split()
  assert preprocess.run([*argv, *added])["written"] == 2
  found = records(tmp_path / "out")
  assert sorted(record.label for record in found) == [0, 1]


def test_the_program_exits_0_with_dead_letters_and_2_on_a_wrong_path(finished, capsys):
  _, argv, _ = finished
  assert preprocess.main(argv) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["dead"] == 6
  assert preprocess.main([*argv, "--vae_checkpoint=/nowhere"]) == 2
  assert "no complete checkpoint in /nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
  """The output of a job with four videos, one of them for validation."""
  folder = tmp_path_factory.mktemp("made")
  rows = good_rows(folder, videos=4, images=0)
  preprocess.run(world.argv(write_manifest(folder, rows), folder / "out"))
  return folder / "out"


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda d: next(d.glob("*.sidecar.json")).unlink(), "has no sidecar: . rows are unaccounted"),
    (lambda d: next(d.glob("*-of-00002")).unlink(), "bytes of its sidecar"),
    (
      lambda d: (d / "train.tfrecord-00000-of-00014").write_bytes(b""),
      "00014 is not a shard of this run",
    ),
    (
      lambda d: [
        path.write_text(json.dumps(storage.read_json(path) | {"dead": 1}))
        for path in d.glob("*.sidecar.json")
      ],
      "were written, rejected, dead or quarantined",
    ),
  ],
)
def test_finalise_rejects_missing_shards_and_rows(made, tmp_path, damage, message):
  shutil.copytree(made, tmp_path / "out")
  videos = tmp_path / "out" / "toy_videos"
  digest = settings.settings_digest(storage.read_json(tmp_path / "out/toy.settings.json"))
  damage(videos)
  with pytest.raises(ledger.LedgerError, match=message):
    ledger.finalize(str(tmp_path / "out"), "toy", settings_digest=digest, origin={})
  assert not (videos / "COMPLETED").exists()


def test_verify_finds_a_flipped_byte_and_a_missing_shard(made, tmp_path, capsys, monkeypatch):
  shutil.copytree(made, tmp_path / "out")
  videos = tmp_path / "out" / "toy_videos"
  assert verify.main([str(videos)]) == 0
  shard = next(path for path in videos.glob("train.tfrecord-*-of-00002") if path.stat().st_size)
  content = bytearray(shard.read_bytes())
  content[-20] ^= 1
  shard.write_bytes(bytes(content))
  (videos / "validation.tfrecord-00000-of-00001").unlink()
  other = next(path for path in videos.glob("train.tfrecord-*-of-00002") if path != shard)
  pathlib.Path(f"{other}.sidecar.json").write_bytes(b"")
  capsys.readouterr()
  assert verify.main([str(videos)]) == 1
  lines = capsys.readouterr().out.splitlines()
  assert sum("sha256 differs" in line for line in lines) == 1
  assert sum("is missing" in line for line in lines) == 1
  assert sum("the sidecar is damaged" in line for line in lines) == 1
  monkeypatch.setattr(verify, "_WORTH_PROCESSES", 0)
  assert verify.main([str(videos), "--workers=2"]) == 1
  assert capsys.readouterr().out.splitlines() == lines


def test_a_flipped_bit_in_a_cache_is_found_by_name_and_mended_by_the_same_command(
  world, tmp_path, capsys
):
  rows = [*good_rows(tmp_path, videos=3, images=0), {"uri": "nowhere.mp4"}]
  out, manifest = tmp_path / "out", write_manifest(tmp_path, rows)
  preprocess.run(world.argv(manifest, out))
  folder = out / "toy_videos"
  intact = {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
  damaged = {}
  for file, content in intact.items():
    # In a text a digit, so that it still parses.
    text = file.suffix in (".json", ".jsonl")
    places = [i for i, byte in enumerate(content) if not text or chr(byte).isdigit()]
    if file.parent == folder and places:
      changed = bytearray(content)
      changed[places[len(places) // 2]] ^= 1
      file.write_bytes(damaged.setdefault(file, bytes(changed)))
      assert verify.main([str(folder)]) == 1
      assert file.name.removesuffix(".sidecar.json") in capsys.readouterr().out
      file.write_bytes(content)
  for kind in ("provenance.json", "info.", "stats.", ".sidecar.json", "d.jsonl", "-of-00002"):
    assert any(kind in file.name for file in damaged)
  for of_sidecars in (True, False):
    for file, content in damaged.items():
      if (".sidecar." in file.name) == of_sidecars:
        file.write_bytes(content)
    preprocess.run(world.argv(manifest, out))
    assert {file: file.read_bytes() for file in intact} == intact
  assert verify.main([str(folder)]) == 0
  # A file of an earlier version is read, and named.
  (folder / "provenance.json").write_text(read_provenance(str(folder)).to_json())
  capsys.readouterr()
  assert verify.main([str(folder)]) == 0
  assert "JSON files, such as provenance.json, have no digest" in capsys.readouterr().out
