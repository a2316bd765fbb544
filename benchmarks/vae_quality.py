"""Reconstruction quality of a trained VAE of gin/vae_small.gin, compared with resampling to as many values.

  python benchmarks/vae_quality.py --cache=CACHE --run=runs/vae_small [--adversarial_run=runs/vae_small_adversarial]

prints PSNR and SSIM over the held-out rendered clips and over the real clips (which are training data: the sample
corpus holds out none), and writes benchmarks/vae_quality.json, docs/vae_reconstructions.png and docs/vae_curve.png.

The other codec downscales frames with a bicubic filter and keeps every n-th frame, to at most the same number of
values, and upscales them again: bicubic in space, linear in time. Its shape is the best over the held-out clips.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PIXELS = "pixels/17x32x32"
FRAMES, SIDE = 17, 32


def read_clips(cache: Path, split: str) -> dict[str, np.ndarray]:
  """uri -> uint8 clip."""
  from data import schema, tfrecord

  clips = {}
  for file in sorted((cache / "vae_pixels_videos").glob(f"{split}.tfrecord-?????-of-?????")):
    with file.open("rb") as stream:
      for raw in tfrecord.read_records(stream, name=str(file)):
        record = schema.decode(raw)
        clips[record.uri] = record.pixels[PIXELS]
  return clips


def resample(clips: np.ndarray, *, frames: int, side: int) -> np.ndarray:
  """Resamples clips in [0, 1] to `frames` evenly spaced frames of side x side and back."""
  from PIL import Image

  def resize(image: np.ndarray, size: int) -> np.ndarray:
    planes = [
      np.asarray(Image.fromarray(image[..., c]).resize((size, size), Image.Resampling.BICUBIC))
      for c in range(3)
    ]
    return np.stack(planes, axis=-1)

  times = np.linspace(0, FRAMES - 1, frames)
  found = []
  for clip in clips.astype(np.float32):
    small = np.stack([resize(frame, side) for frame in clip])
    low, high = np.floor(times).astype(int), np.ceil(times).astype(int)
    share = (times - low)[:, None, None, None].astype(np.float32)
    kept = (1 - share) * small[low] + share * small[high]
    where = np.arange(FRAMES) * (frames - 1) / (FRAMES - 1)
    low = np.minimum(where.astype(int), frames - 2)
    share = (where - low)[:, None, None, None].astype(np.float32)
    between = (1 - share) * kept[low] + share * kept[low + 1]
    found.append(np.stack([resize(frame, SIDE) for frame in between]))
  return np.clip(np.stack(found), 0, 1)


def best_resampling(clips: np.ndarray, values: int) -> tuple[np.ndarray, str]:
  """The resampling to at most `values` values per clip with the best mean PSNR, and its shape."""
  best = (-np.inf, clips, "")
  for frames in (2, 3, 5, 6, 9, 13, 17):
    side = int((values / 3 / frames) ** 0.5)
    if 2 <= side <= SIDE:
      found = resample(clips, frames=frames, side=side)
      score = float(np.mean(clip_psnr(found, clips)))
      if score > best[0]:
        best = (score, found, f"{frames}x{side}x{side}x3")
  return best[1], best[2]


def clip_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """PSNR in dB per clip."""
  return -10 * np.log10(np.mean(np.square(a - b), axis=(1, 2, 3, 4)))


def load(run: Path):
  """(clips -> reconstructions, latent shape) of a run with averaged weights."""
  import jax
  import jax.numpy as jnp

  from beam_jobs.runners.job_flags import vae_fields_of_gin
  from beam_jobs.shards.encoders import build_vae
  from walt_t5x.engine.checkpoints import load_params

  vae = build_vae(vae_fields_of_gin(str(ROOT / "gin/models/vae_small.gin")))
  params = load_params(run, ema=True)["vae"]
  decode = jax.jit(lambda x: jnp.clip(vae.apply({"params": params}, x)[0], 0, 1))

  def reconstruct(clips: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(decode(clips[i : i + 8])) for i in range(0, len(clips), 8)])

  return reconstruct, vae.latent_shape((FRAMES, SIDE, SIDE))


def scores(found: np.ndarray, clips: np.ndarray) -> dict[str, float]:
  """Means over clips."""
  import jax.numpy as jnp

  from walt_t5x.metrics.pixel_distances import ssim

  similarity = [
    float(ssim(jnp.asarray(f[None]), jnp.asarray(c[None]))[0]) for f, c in zip(found, clips)
  ]
  return {"psnr": float(np.mean(clip_psnr(found, clips))), "ssim": float(np.mean(similarity))}


def picture(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
  """Draws labeled strips of five frames of each clip of each row."""
  from PIL import Image, ImageDraw

  scale, gap, label = 2, 4, 150
  times = (0, 4, 8, 12, 16)
  clips = len(rows[0][1])
  strip = len(times) * SIDE * scale + gap
  canvas = Image.new("RGB", (label + clips * strip, len(rows) * (SIDE * scale + gap)), "white")
  draw = ImageDraw.Draw(canvas)
  for r, (name, videos) in enumerate(rows):
    top = r * (SIDE * scale + gap)
    draw.text((6, top + SIDE * scale // 2 - 6), name, fill="black")
    for c, clip in enumerate(videos):
      for f, time in enumerate(times):
        frame = Image.fromarray(np.rint(255 * clip[time]).astype(np.uint8))
        frame = frame.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST)
        canvas.paste(frame, (label + c * strip + f * SIDE * scale, top))
  canvas.save(path, optimize=True)


def curve(
  runs: list[tuple[str, list[tuple[int, float]]]], bars: dict[str, float], path: Path
) -> None:
  """Plots held-out PSNR over steps, with horizontal bars."""
  from PIL import Image, ImageDraw

  width, height, left, bottom = 720, 360, 50, 40
  points = [point for _, line in runs for point in line]
  last = max(step for step, _ in points)
  low = np.floor(min(value for _, value in points)) - 0.5
  high = np.ceil(max([value for _, value in points] + list(bars.values()))) + 0.5

  def at(step: float, value: float) -> tuple[float, float]:
    x = left + step / last * (width - left - 20)
    return x, (height - bottom) - (value - low) / (high - low) * (height - bottom - 20)

  canvas = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(canvas)
  for value in range(int(np.ceil(low)), int(high) + 1, 1):
    draw.line([at(0, value), at(last, value)], fill="#e5e5e5")
    draw.text((8, at(0, value)[1] - 6), f"{value}", fill="black")
  for step in range(0, last + 1, 500):
    draw.text((at(step, low)[0] - 10, height - bottom + 6), f"{step}", fill="black")
  draw.text((width // 2 - 60, height - 16), "step; held-out PSNR, dB", fill="black")
  for name, value in bars.items():
    draw.line([at(0, value), at(last, value)], fill="#c0392b")
    draw.text((left + 6, at(0, value)[1] - 13), f"{name} {value:.2f}", fill="#c0392b")
  for (name, line), color in zip(runs, ("#1f5fbf", "#2d8a4e")):
    draw.line([at(*point) for point in line], fill=color, width=3)
    x, y = at(*line[-1])
    draw.text((max(left, x - 170), y + 8), f"{name} {line[-1][1]:.2f}", fill=color)
  canvas.save(path, optimize=True)


def held_out_curve(run: Path, first: int = 0) -> list[tuple[int, float]]:
  """(step, PSNR) of every evaluation with the current weights."""
  key = "training_eval/vae_pixels_videos/psnr"
  lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
  return [(first + line["step"], line[key]) for line in lines if key in line]


def main() -> None:
  """Measures, prints and writes the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cache", required=True, type=Path, help="cache of pixels, see docs/vae.md")
  parser.add_argument("--run", required=True, type=Path, help="model_dir of gin/vae_small.gin")
  parser.add_argument("--adversarial_run", type=Path, help="of gin/vae_small_adversarial.gin")
  options = parser.parse_args()

  held_out = np.stack(list(read_clips(options.cache, "validation").values())) / np.float32(255)
  train = read_clips(options.cache, "train")
  real = np.stack([v for uri, v in train.items() if uri.startswith("real/")]) / np.float32(255)
  models = {"VAE": options.run}
  if options.adversarial_run:
    models["VAE, adversarial"] = options.adversarial_run

  table: dict[str, dict[str, dict[str, float]]] = {}
  rows = [("original", np.stack([*held_out[:2], real[0]]))]
  shape, shown = (), []
  for name, run in models.items():
    reconstruct, shape = load(run)
    found = {"held-out": reconstruct(held_out), "real": reconstruct(real)}
    table[name] = {
      "held-out": scores(found["held-out"], held_out),
      "real": scores(found["real"], real),
    }
    shown.append((name, np.stack([*found["held-out"][:2], found["real"][0]])))
  values = int(np.prod(shape))
  resampled, kept = best_resampling(held_out, values)
  frames, side, *_ = (int(n) for n in kept.split("x"))
  resampled_real = resample(real, frames=frames, side=side)
  name = f"resampled to {kept}"
  table[name] = {"held-out": scores(resampled, held_out), "real": scores(resampled_real, real)}
  rows += [*shown, (f"resampled {kept}", np.stack([*resampled[:2], resampled_real[0]]))]

  print(f"{values} values per clip of {FRAMES}x{SIDE}x{SIDE}x3 = {FRAMES * SIDE * SIDE * 3}\n")
  print(f"| {'':<28} | {len(held_out)} held-out rendered clips | {len(real)} real clips |")
  print("| --- | --- | --- |")
  for row, parts in table.items():
    cells = [f"{p['psnr']:.2f} dB, SSIM {p['ssim']:.3f}" for p in parts.values()]
    print(f"| {row:<28} | {cells[0]} | {cells[1]} |")
  margin = table["VAE"]["held-out"]["psnr"] - table[name]["held-out"]["psnr"]
  print(f"\nVAE - resampling, held-out: {margin:+.2f} dB (bar +2 dB)")

  runs = [("VAE", held_out_curve(options.run))]
  if options.adversarial_run:
    runs.append(("adversarial", held_out_curve(options.adversarial_run, runs[0][1][-1][0])))
  base = table[name]["held-out"]["psnr"]
  curve(runs, {"resampling": base, "bar": base + 2}, ROOT / "docs/vae_curve.png")
  picture(rows, ROOT / "docs/vae_reconstructions.png")
  report = {"values": values, "clips": len(held_out), "table": table, "margin_db": margin}
  report["curve"] = [{"run": label, "points": points} for label, points in runs]
  (ROOT / "benchmarks/vae_quality.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
  main()
