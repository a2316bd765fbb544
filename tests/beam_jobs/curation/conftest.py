"""Videos that ffmpeg's command line splices of rendered scenes."""

import pathlib
import shutil
import subprocess

import pytest

SCENES = {
  "test": "testsrc2=s=160x120:r=25",
  "fractal": "mandelbrot=s=160x120:r=25",
  "bars": "smptebars=s=160x120:r=25",
  "cells": "life=s=160x120:r=25:mold=10:ratio=0.3:life_color=#00ff00:death_color=#c83232",
  "black": "color=c=black:s=160x120:r=25",
}


def tool(*command: str) -> bytes:
  """What a command of FFmpeg prints; the test is skipped without the command, or if it has no such codec or source."""
  if shutil.which(command[0]) is None:
    pytest.skip(f"needs the {command[0]} command")
  done = subprocess.run(command, capture_output=True, check=False)
  if done.returncode:
    pytest.skip(f"this FFmpeg cannot do it: {done.stderr.decode(errors='replace')[-200:]}")
  return done.stdout


def splice(path: pathlib.Path, *scenes: tuple[str, float], video: str = "libx264") -> None:
  """Writes scenes one after another, each with its seconds."""
  inputs = [
    part
    for name, seconds in scenes
    for part in ("-f", "lavfi", "-t", str(seconds), "-i", SCENES[name])
  ]
  formats = "".join(f"[{i}:v]format=yuv420p[v{i}];" for i in range(len(scenes)))
  joined = "".join(f"[v{i}]" for i in range(len(scenes)))
  graph = f"{formats}{joined}concat=n={len(scenes)}:v=1[out]"
  command = ["ffmpeg", "-v", "error", "-y", *inputs, "-filter_complex", graph, "-map", "[out]"]
  tool(*command, "-c:v", video, str(path))


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> pathlib.Path:
  """A folder of four spliced videos; one is cut off, and can be read up to there."""
  folder = tmp_path_factory.mktemp("long_videos")
  splice(folder / "a.mp4", ("test", 2), ("fractal", 3), ("bars", 1.2))
  splice(folder / "b.mkv", ("fractal", 1), ("cells", 2.4))
  splice(folder / "c.mp4", ("black", 1.6), ("bars", 2))
  splice(folder / "d.ts", ("bars", 2), ("test", 4), video="mpeg2video")
  content = (folder / "d.ts").read_bytes()
  (folder / "d.ts").write_bytes(content[: len(content) * 2 // 3])
  return folder
