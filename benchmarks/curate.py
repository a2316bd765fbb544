"""Frames per second of curation compared with decoding alone, the cost of each of its steps, and its memory.

  python -m benchmarks.curate --weights=transnet.safetensors   # prints and writes benchmarks/curate.{md,json}
  python -m benchmarks.curate --parts=memory                   # the other figures are kept

Rate: `curate_video`, with PySceneDetect and all built-in scores, and a loop that only decodes (`open_video`), in turn
in one process, of a 720p H.264 film of three videos of installed packages. Both decode in one thread. Ratios are of CPU
seconds, so that other load does not count, and of wall-clock time.

Steps: CPU milliseconds per frame of that film, the least of three rounds. TransNet V2 needs --weights
(docs/curation.md), the area of text requirements-curate.lock.

Memory: two videos of 30 minutes, 640 x 360, one of 420 shots and one of 30, each read by a new process in which
everything happens. Its resident memory is noted for every 100 frames; within a shot it grows with the sampled frames.

Held: the rate at least 0.6 of decoding; memory after the first minute of a video grows by at most 5% of its mean per
hour of video.
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.curation import scanning, scores, shots, videos
from beam_jobs.filters.duplicates import perceptual_hash
from beam_jobs.shards.loading import DecodeSettings
from beam_jobs.sources.rows import Row, parse_line
from benchmarks import beam_runners, results
from benchmarks.fvd_parity import VIDEOS, installed
from walt_t5x.media import reading

HERE = Path(__file__).resolve().parent
BARS = {"of_decoding": 0.6, "memory_per_hour": 0.05}
RATE, SIZE, MINUTES = 25, (360, 640), 30
ROUNDS = 3
TEXT = "beam_jobs.curation.text_area:TextArea"
# Kind of a long video -> shots per minute.
SHOTS = {"short shots": 14, "long shots": 1}


def make_film(path: Path) -> None:
  """Joins the larger videos at 1280 x 720."""
  sources = [installed(name) for name in list(VIDEOS)[:3]]
  scaled = f"fps={RATE},scale=1280:720:force_original_aspect_ratio=increase,crop=1280:720"
  parts = [f"[{i}:v]{scaled},setsar=1,format=yuv420p[v{i}]" for i in range(len(sources))]
  labels = "".join(f"[v{i}]" for i in range(len(sources)))
  graph = ";".join([*parts, f"{labels}concat=n={len(sources)}:v=1[out]"])
  inputs = itertools.chain.from_iterable(("-i", str(source)) for source in sources)
  command = ["ffmpeg", "-v", "error", "-y", *inputs, "-filter_complex", graph, "-map", "[out]"]
  subprocess.run([*command, "-c:v", "libx264", "-crf", "23", str(path)], check=True)


def make_long_video(path: Path, *, shots_per_minute: int) -> None:
  """Renders a minute of windows that move over random pictures, and repeats its packets."""
  import av

  rng = np.random.default_rng(shots_per_minute)
  height, width = SIZE
  frames = 60 * RATE
  packets = []
  with av.open(str(path), "w") as file:
    track = file.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "bf": "0"})
    track.height, track.width, track.pix_fmt = height, width, "yuv420p"
    for shot in np.array_split(np.arange(frames), shots_per_minute):
      cells = rng.integers(0, 256, (60, 90, 3), np.uint8)
      picture = cells.repeat(10, axis=0).repeat(10, axis=1)
      for number in range(len(shot)):
        at = 200 * number // len(shot)
        window = np.ascontiguousarray(picture[at : at + height, at : at + width])
        packets += track.encode(av.VideoFrame.from_ndarray(window, format="rgb24"))
    packets += track.encode(None)
    first = [(packet.pts, packet.dts) for packet in packets]
    minute = round(60 / packets[0].time_base)
    for repeat in range(MINUTES):
      for packet, (shown, decoded) in zip(packets, first, strict=True):
        copy = av.Packet(bytes(packet))
        copy.pts, copy.dts = shown + repeat * minute, decoded + repeat * minute
        copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, track, packet.is_keyframe
        file.mux(copy)


def job_of(path: Path) -> tuple[Row, videos.CurationJob]:
  """A row of the file, and the job with the defaults of the program, in this process."""
  decoding = DecodeSettings(isolation="thread")
  job = videos.CurationJob(output="", media_root=str(path.parent), parts=1, decoding=decoding)
  return parse_line(json.dumps({"uri": path.name}), str(path.parent)), job


def decode(path: Path) -> int:
  """Only decodes; the number of frames."""
  with reading.open_video(str(path)) as video:
    return sum(1 for _ in video.frames())


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
  """(CPU seconds, seconds, result) of a call."""
  began, processor = time.perf_counter(), time.process_time()
  result = function()
  return time.process_time() - processor, time.perf_counter() - began, result


def measure_rate(work: Path, *, rounds: int) -> dict[str, Any]:
  film = work / "film.mp4"
  make_film(film)
  row, job = job_of(film)
  videos.curate_video(row, job)  # Imports and caches.
  pairs, frames = [], 0
  for _ in range(rounds):
    *bare, frames = timed(lambda: decode(film))
    *full, found = timed(lambda: videos.curate_video(row, job))
    if found["dead"]:
      raise RuntimeError(f"the film cannot be read: {found['dead']}")
    pairs.append((bare, full))
  per_second = [
    [[frames / one[clock] for one in pair] for pair in pairs] for clock in (0, 1)
  ]  # [clock][round][bare or full]

  def median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)

  return {
    "frames": frames,
    "rounds": rounds,
    "bits_per_second": round(film.stat().st_size * 8 * RATE / frames),
    **{
      name: {
        "decoding": median(bare for bare, _ in per_second[clock]),
        "curation": median(full for _, full in per_second[clock]),
        "ratio": median(full / bare for bare, full in per_second[clock]),
      }
      for clock, name in enumerate(("frames_per_cpu_second", "frames_per_second"))
    },
  }


def measure_steps(work: Path, *, weights: str | None) -> dict[str, float]:
  """CPU milliseconds per frame by step."""
  film = work / "film.mp4"
  make_film(film)
  spec = scanning.ScanSpec()
  chunks = list(scanning.scan(str(film), spec))
  count = sum(len(chunk.begins) for chunk in chunks)
  thumbnails = [chunk.thumbnails for chunk in chunks]
  flags = [flag for part in shots.ContentDetector()(iter(thumbnails)) for flag in part]

  def known(thumbnails: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """A detector that costs nothing."""
    for _ in thumbnails:
      pass
    yield np.array(flags)

  def cut() -> list[shots.ShotSegment]:
    return list(shots.segments(shots.Flagged(iter(chunks), known), max_seconds=20.0))

  clips = [np.stack(segment.frames) for segment in cut() if segment.frames]
  steps: dict[str, Callable[[], Any]] = {
    "decoding": lambda: decode(film),
    "decoding, thumbnails, sampled frames": lambda: list(scanning.scan(str(film), spec)),
    "PySceneDetect": lambda: list(shots.ContentDetector()(iter(thumbnails))),
    "flashes and segments": cut,
  }
  if weights:
    network = shots.NetworkDetector.load(weights, 0.5)
    steps["TransNet V2"] = lambda: list(network(iter(thumbnails)))
  for score in (*(one() for one in scores.BUILT_IN), scores.load(TEXT)):
    names = ", ".join(score(clips[0]))
    steps[f"scores: {names}"] = lambda score=score: [score(clip) for clip in clips]
  steps["perceptual hashes"] = lambda: [perceptual_hash(clip) for clip in clips]
  steps["sha256 of sampled frames"] = lambda: [
    hashlib.sha256(clip.tobytes()).hexdigest() for clip in clips
  ]
  least = {
    name: min(timed(step)[0] for _ in range(ROUNDS)) * 1000 / count for name, step in steps.items()
  }
  both = least.pop("decoding, thumbnails, sampled frames")
  found = {"decoding": least.pop("decoding")}
  found["thumbnails, sampled frames"] = both - found["decoding"]
  return {name: round(value, 4) for name, value in (found | least).items()}


def noted(path: Path) -> dict[str, Any]:
  """Curates a file in this process: [minutes of video, MiB] of every chunk."""
  row, job = job_of(path)
  scan, notes = videos.scan, []

  def scanned(*args: Any, **options: Any) -> Iterator[scanning.Chunk]:
    for chunk in scan(*args, **options):
      pages = int(Path("/proc/self/statm").read_text().split()[1])
      notes.append([chunk.begins[0] / 60e6, pages * os.sysconf("SC_PAGE_SIZE") / 2**20])
      yield chunk

  videos.scan = scanned
  found = videos.curate_video(row, job)
  if found["dead"]:
    raise RuntimeError(f"{path} cannot be read: {found['dead']}")
  return {"segments": len(found["segments"]), "notes": notes}


def measure_memory(work: Path) -> dict[str, Any]:
  result = {}
  for kind, per_minute in SHOTS.items():
    path = work / f"{per_minute}.mp4"
    make_long_video(path, shots_per_minute=per_minute)
    command = [sys.executable, "-m", "benchmarks.curate", f"--note={path}"]
    began = time.monotonic()
    done = subprocess.run(
      command,
      cwd=beam_runners.ROOT,
      env=beam_runners.environment(),
      check=True,
      capture_output=True,
    )
    seconds = time.monotonic() - began
    noted = json.loads(done.stdout.splitlines()[-1])
    after = np.array([note for note in noted["notes"] if note[0] >= 1])
    mean = float(after[:, 1].mean())
    result[kind] = {
      "minutes": MINUTES,
      "seconds": round(seconds, 1),
      "segments": noted["segments"],
      "mean_mebibytes": round(mean, 1),
      "least_mebibytes": round(float(after[:, 1].min()), 1),
      "most_mebibytes": round(float(after[:, 1].max()), 1),
      "mebibytes_per_hour": round(60 * float(np.polyfit(after[:, 0], after[:, 1], 1)[0]), 2),
    }
  return result


def held(report: dict[str, Any]) -> bool:
  """Whether all bars are met; parts that were not measured are not."""
  rate, memory = report.get("rate"), report.get("memory")
  if rate is None or memory is None:
    return False
  flat = all(
    found["mebibytes_per_hour"] <= BARS["memory_per_hour"] * found["mean_mebibytes"]
    for found in memory.values()
  )
  return flat and rate["frames_per_cpu_second"]["ratio"] >= BARS["of_decoding"]


def table(report: dict[str, Any]) -> str:
  """Markdown."""
  lines = ["# Curation: rate, steps and memory", ""]
  lines += [
    "Written by `python -m benchmarks.curate --weights=FILE`, which says what is measured.",
    "",
  ]
  if rate := report.get("rate"):
    lines += [
      f"1280 x 720, {rate['frames']} frames, {rate['bits_per_second'] / 1e6:.1f} Mbit/s, median of {rate['rounds']} "
      f"alternating rounds (bar {BARS['of_decoding']} of decoding):",
      "",
      "| frames per | decoding alone | curation | ratio |",
      "| --- | --- | --- | --- |",
    ]
    for name in ("frames_per_cpu_second", "frames_per_second"):
      found = rate[name]
      words = name.removeprefix("frames_per_").replace("_", " ").replace("cpu", "CPU")
      lines.append(
        f"| {words} | {found['decoding']:.0f} | {found['curation']:.0f} | {found['ratio']:.2f} |"
      )
  if steps := report.get("steps"):
    lines += ["", "| step | CPU ms per frame | of decoding |", "| --- | --- | --- |"]
    lines += [
      f"| {name} | {value:.3f} | {value / steps['decoding']:.1%} |" for name, value in steps.items()
    ]
  if memory := report.get("memory"):
    lines += [
      "",
      "Resident memory after the first minute of a video, in MiB (bar "
      f"{BARS['memory_per_hour']:.0%} of the mean per hour of video):",
      "",
      "| video | segments | least | mean | most | growth per hour of video |",
      "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, found in memory.items():
      lines.append(
        f"| {found['minutes']} min, {kind} | {found['segments']} | {found['least_mebibytes']} "
        f"| {found['mean_mebibytes']} | {found['most_mebibytes']} | {found['mebibytes_per_hour']:+.1f} |"
      )
  return "\n".join([*lines, "", f"Held: {report['held']}.", ""])


def main() -> int:
  """Measures the parts; returns 1 if a bar is missed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--parts", default="rate,steps,memory")
  parser.add_argument("--rounds", type=int, default=7, help="of the rate (7)")
  parser.add_argument("--weights", help="TransNet V2")
  parser.add_argument("--output", default=str(HERE), help="folder of curate.{md,json}")
  parser.add_argument("--note", type=Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.note:
    print(json.dumps(noted(args.note)))
    return 0
  file = Path(args.output) / "curate.json"
  report = json.loads(file.read_text()) if file.exists() else {}
  parts = {
    "rate": functools.partial(measure_rate, rounds=args.rounds),
    "steps": functools.partial(measure_steps, weights=args.weights),
    "memory": measure_memory,
  }
  for part in args.parts.split(","):
    with tempfile.TemporaryDirectory() as work:
      report[part] = parts[part](Path(work))
      print(json.dumps({part: report[part]}), flush=True)
  report["held"] = held(report)
  results.write(args.output, "curate", table(report), report)
  return 0 if report["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
