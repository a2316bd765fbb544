"""Settings: caches that were made before a setting existed can be resumed, and are protected from its other values."""

import dataclasses
import types

import pytest

from beam_jobs.filters.row_filters import FilterSpec
from beam_jobs.runners import job_flags
from beam_jobs.shards import settings
from beam_jobs.sources.spec import SourceSpec
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.media.clips import ClipSpec

CLIP = ClipSpec(resolutions=((32, 32),), num_frames=9, fps=8.0)
# As caches that exist record it.
RECORDED = {
  "resolutions": ((32, 32),),
  "num_frames": 9,
  "fps": 8.0,
  "position": "centre",
  "seed": 0,
  "allow_upscale": False,
  "max_bytes": 1 << 30,
  "max_pixels": 8192 * 8192,
  "max_seconds": 6 * 3600.0,
  "max_decoded_frames": 20_000,
}


def settings_with(clip: ClipSpec):
  job = types.SimpleNamespace(
    clip=clip,
    filtering=FilterSpec(),
    num_shards={"train": 1},
    encoders=types.SimpleNamespace(batch_sizes={}),
  )
  return settings.settings_of({}, job)


def test_settings_with_their_defaults_are_those_of_caches_that_exist():
  assert settings_with(CLIP)["clip"] == RECORDED


@pytest.mark.parametrize("deinterlace", [False, True])
def test_a_flag_reaches_the_clip_and_a_replay_finds_it_in_the_settings(deinterlace):
  flags = ["--manifest=a.jsonl", "--output=out", "--task=toy", "--content=pixels"]
  flags += ["--resolutions=32x32", *["--deinterlace"] * deinterlace]
  args, _ = job_flags.parse(flags, description="")
  source = SourceSpec(kind="jsonl", pattern="a.jsonl", media_root="")
  job = job_flags.job_of(args, filtering=FilterSpec(), source=source)
  assert job.clip.deinterlace is deinterlace
  assert ClipSpec(**settings_with(job.clip)["clip"]) == job.clip


def test_an_older_cache_is_resumed_by_its_own_settings_only(tmp_path):
  older = settings_with(CLIP) | {"clip": RECORDED}
  (tmp_path / "toy_videos").mkdir()
  settings.guard(str(tmp_path), "toy", older)
  (tmp_path / f"toy_videos/toy{settings.SIDECAR}").write_text("{}")
  settings.guard(str(tmp_path), "toy", settings_with(CLIP))
  newer = settings_with(dataclasses.replace(CLIP, deinterlace=True))
  assert settings.settings_digest(newer) != settings.settings_digest(older)
  with pytest.raises(Mismatch, match=r"clip\.deinterlace: the folder has None, this run True"):
    settings.guard(str(tmp_path), "toy", newer)
