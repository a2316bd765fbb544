"""The preflight: its report of a small manifest, its flags and exit codes. Its faults: lookalikes_test."""

import argparse
import json
import re

import pytest

from beam_jobs import preflight
from beam_jobs.runners import job_flags, running
from beam_jobs.shards import remedies
from tests.beam_jobs import media
from walt_t5x.text.vocabulary import train_vocabulary

CLIP = ("--resolutions=16x16,32x32", "--num_frames=5", "--fps=6")


@pytest.fixture
def manifest(tmp_path):
  """60 rows: the first 20 are videos, of which 3 are broken; then images, of which every second is missing."""
  (tmp_path / "a.mp4").write_bytes(media.video(num_frames=24, fps=12, height=48, width=80))
  (tmp_path / "a.png").write_bytes(media.image(height=40, width=32))
  (tmp_path / "html.mp4").write_text("<html>")
  rows = [{"uri": "a.mp4", "caption": f"clip number {i}", "label": i % 2} for i in range(20)]
  for i in (3, 5, 7):
    rows[i]["uri"] = "html.mp4"
  rows += [{"uri": ("a.png", "no.png")[i % 2], "caption": f"still {i}"} for i in range(40)]
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _run(manifest, *flags):
  return preflight.run([f"--manifest={manifest}", *CLIP, "--decode_isolation=thread", *flags])


def test_a_report_states_what_was_seen_and_what_a_job_would_do(manifest, tmp_path, capsys):
  vocabulary = train_vocabulary([f"clip number still {i}" for i in range(40)])
  (tmp_path / "spiece.model").write_bytes(vocabulary.model)
  found = _run(manifest, f"--vocabulary={tmp_path / 'spiece.model'}", "--max_text_length=3")
  assert found["splits"] == {"train": 60} and found["modalities"] == {"video": 20, "image": 40}
  assert found["classes"]["with_rows"] == 2 and found["repeated_uris"] == 60 - 4
  assert found["classes"]["labels"] == 2
  seen = found["media"]
  assert seen["examples"] == {"video": str(tmp_path / "a.mp4"), "image": str(tmp_path / "a.png")}
  assert seen["containers"] == {"PNG": 20, "mov,mp4,m4a,3gp,3g2,mj2": 17}
  assert seen["codecs"] == {"PNG": 20, "h264": 17} and seen["rates"] == {"12": 17}
  assert seen["sizes"] == {"40x32": 20, "48x80": 17}
  assert seen["seconds"] == {"min": 2.0, "median": 2.0, "max": 2.0}
  texts = [f"clip number {i}" for i in range(20)] + [f"still {i}" for i in range(40)]
  lengths = sorted(len(vocabulary.encode(text, 99)) for text in texts)
  assert found["captions"]["tokens"] == {
    "min": lengths[0],
    "median": lengths[30],
    "max": lengths[-1],
  }
  cut = sum(length > 3 for length in lengths)
  assert found["captions"]["cut"] == cut
  share = f"{cut} of 60 ({cut / 60:.1%}, the longest has {lengths[-1]}) are cut"
  printed = capsys.readouterr().out
  assert share in printed
  assert {f["reason"]: f["count"] for f in found["faults"]} == {"missing": 20, "not_media": 3}
  expected = found["expected"]
  assert (expected["clips"], expected["written"]) == (60, 37)
  pixels = (17 * 5 + 20) * 3 * (16 * 16 + 32 * 32) / 37
  assert expected["pixel_bytes_per_clip"] == round(pixels)
  assert "missing: 20 of 60 sampled rows" in printed


def test_shares_are_those_of_the_rows_by_chance(manifest):
  """The first rows are all videos; half of the rest is missing."""
  found = _run(manifest, "--rows=40", "--seed=3")
  assert (found["media"]["first"], found["media"]["by_chance"]) == (20, 20)
  missing = next(f["count"] for f in found["faults"] if f["reason"] == "missing")
  assert found["expected"]["written_percent"] == 100 * (20 - missing) / 20 and missing > 0


def test_processes_and_a_pasted_command_give_the_same_report(manifest):
  pasted = ("--output=/nowhere", "--task=t", "--vae_gin_file=gin/models/vae_video.gin")
  pasted += ("--vae_checkpoint=/nowhere", "--num_shards=3", "--runner=FnApiRunner")
  found = _run(manifest, *pasted, "--decode_isolation=process", "--decode_threads=1")
  # Latents [1 + T, 2, 2, 8] and [1 + T, 4, 4, 8] in bfloat16; T is 1 for videos and 0 for images.
  latents = (17 * 2 + 20) * 2 * 8 * (2 * 2 + 4 * 4) / 37
  assert found["expected"].pop("latent_bytes_per_clip") == round(latents)
  assert found == _run(manifest)


def test_clips_of_videos_are_rows_of_a_job(manifest):
  found = _run(manifest, "--clips_per_video=3", "--clip_position=random")
  expected = found["expected"]
  assert (expected["clips"], expected["written"]) == (20 * 3 + 40, 17 * 3 + 20)


def test_faults_are_findings_and_wrong_flags_are_errors(manifest, capsys):
  flags = [*CLIP, "--decode_isolation=thread", "--rows=8"]
  assert preflight.main([f"--manifest={manifest}", *flags]) == 0
  capsys.readouterr()
  assert preflight.main(["--manifest=nowhere.jsonl", *flags]) == 2
  assert capsys.readouterr().err == "preflight: --manifest: no file at nowhere.jsonl\n"
  assert preflight.main([f"--manifest={manifest}", *flags, "--filters=x"]) == 2
  assert "unknown flags ['--filters=x']" in capsys.readouterr().err


def test_the_flags_that_a_remedy_names_exist():
  parser = argparse.ArgumentParser()
  job_flags.add_arguments(parser)
  running.parse(parser, ["--manifest=a", "--output=b", "--task=c", "--resolutions=8x8"])
  texts = [*remedies._REMEDIES.values(), remedies.remedy("filter", "aesthetic>=5")]
  named = {flag for text in texts for flag in re.findall(r"--\w+", text)}
  assert len(named) > 10 and named <= parser._option_string_actions.keys()
