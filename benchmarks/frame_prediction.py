"""Animation of images and extension of clips by trained toy stages: conditioning frames and predicted motion.

  python -m benchmarks.frame_prediction --corpus=CORPUS --runs=runs/frames --vae_checkpoint=runs/quickstart/vae \\
    --text_encoder=runs/quickstart/text --folder=/tmp/frame_prediction

For held-out clips of `data.samples --num_frames=17`, `walt_t5x.generate` is conditioned on the first 5 frames and makes
12 more in three parts (`--video --extensions=2`), once with the clip's caption and once with one without direction; and
on the first frame with the caption (`--image`). Compared with the clip: PSNR and position of the shape against those of
a frozen last frame, caption accuracy, and the conditioning frames against the tokenizer's reconstruction of them.
Writes frame_prediction.json, .md and .png next to this file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
GIN_FILE = "gin/tiny/generate_frames.gin"
SIZES = {"base": 32, "sr1": 64}
TOTAL, GIVEN, NEW, ROUNDS = 17, 5, 4, 3
ENLARGED = 4  # So that chroma subsampling does not change the colors of the conditioning clips.


def held_out(corpus: Path, count: int):
  """(clips [N, TOTAL, 64, 64, 3] uint8, captions) of the validation split.

  Raises:
    SystemExit: if a clip is shorter.
  """
  import numpy as np

  from walt_t5x.media import reading

  rows = map(json.loads, (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
  rows = [r for r in rows if r["split"] == "validation" and r["modality"] == "video"][:count]
  clips = [reading.read_video(corpus / row["uri"]).frames for row in rows]
  if not clips or min(map(len, clips)) < TOTAL:
    raise SystemExit(
      f"frame_prediction: the clips of {corpus} have {min(map(len, clips), default=0)} frames, expected {TOTAL}: make "
      f"them with `python -m data.samples --num_frames={TOTAL}`"
    )
  return np.stack([clip[:TOTAL] for clip in clips]), [row["captions"][0] for row in rows]


def write_requests(folder: Path, clips, captions) -> dict[str, list[str]]:
  """Writes the conditioning media and requests; returns the flags of each run by name."""
  from PIL import Image

  from walt_t5x.media import writing

  given = folder / "given"
  given.mkdir(parents=True, exist_ok=True)
  requests: dict[str, list[dict]] = {"caption": [], "no_direction": [], "picture": []}
  for i, (clip, caption) in enumerate(zip(clips, captions)):
    writing.write_video(given / f"{i}.mp4", clip[:GIVEN], fps=8, crf=2, scale=ENLARGED)
    Image.fromarray(clip[0]).save(given / f"{i}.png")
    video, picture = f"given/{i}.mp4", f"given/{i}.png"
    requests["caption"].append({"prompt": caption, "video": video})
    requests["no_direction"].append({"prompt": caption.split(" moves")[0], "video": video})
    requests["picture"].append({"prompt": caption, "image": picture})
  for name, rows in requests.items():
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
  return {
    "caption": [f"--extensions={ROUNDS - 1}"],
    "no_direction": [f"--extensions={ROUNDS - 1}", "--stages=base"],
    "picture": [],
  }


def generate(folder: Path, name: str, flags: list[str], bindings: list[str]):
  """Runs the program on the requests; returns its `SampleFolder`."""
  from walt_t5x.generation.sample_folder import SampleFolder

  command = [sys.executable, "-m", "walt_t5x.generate", f"--gin_file={GIN_FILE}", *bindings]
  command += [f"--requests={folder / name}.jsonl", "--fit=crop", "--formats=png,latents"]
  command += [f"--output={folder / name}", "--batch_size=16", "--verbosity=-1", *flags]
  subprocess.run(command, cwd=ROOT, check=True)
  return SampleFolder(folder / name)


def at(clips, side: int):
  """Clips downscaled by area averaging to side x side, like conditioning media."""
  import numpy as np

  n, t, size, _, _ = clips.shape
  if size == side:
    return clips
  k = size // side
  means = clips.reshape(n, t, side, k, side, k, 3).astype(np.float64).mean((3, 5))
  return np.rint(means).astype(np.uint8)


def psnr(frames, truth) -> float:
  """PSNR in dB over all clips."""
  import numpy as np

  return float(-10 * np.log10(np.mean((frames.astype(np.float64) - truth) ** 2) / 255**2))


def places(frames):
  """Center of the shape in each clip's frame [N, H, W, 3], (x, y) in pixels; NaN if none is visible."""
  import numpy as np

  from walt_t5x.metrics.caption_accuracy import foreground

  found = []
  for frame in frames:
    hit = foreground(frame.astype(np.float64) / 255)
    found.append((np.nan, np.nan) if hit is None else np.argwhere(hit[0]).mean(0)[::-1])
  return np.array(found)


def distance(frames, truth) -> float:
  """Median distance between the shapes of two sets of frames, in pixels."""
  import numpy as np

  return float(np.nanmedian(np.linalg.norm(places(frames) - places(truth), axis=-1)))


def obeyed(clips, captions) -> dict[str, float]:
  """Caption accuracy, measured from the pixels of the clips."""
  from walt_t5x.metrics import caption_accuracy

  score = caption_accuracy.score((c / 255, caption) for c, caption in zip(clips, captions))
  return {element: score.accuracy(element) for element in ("color", "direction")}


def rounds_of(made, own, truth) -> list[dict]:
  """New frames of each round compared with the clip: continuation, frozen last conditioning frame, tokenizer."""
  import numpy as np

  frozen = np.broadcast_to(truth[:, GIVEN - 1 : GIVEN], truth.shape)
  found = []
  for i in range(ROUNDS):
    part = slice(GIVEN + NEW * i, GIVEN + NEW * (i + 1))
    ways = {"continuation": made, "frozen": frozen, "tokenizer": own}
    found.append(
      {
        "frames": f"{part.start + 1}-{part.stop}",
        "psnr": {way: psnr(clips[:, part], truth[:, part]) for way, clips in ways.items()},
        "distance": {
          way: distance(clips[:, part.stop - 1], truth[:, part.stop - 1])
          for way, clips in ways.items()
        },
      }
    )
  return found


def montage(path: Path, truth, made, captions, pictures, *, count: int = 3) -> None:
  """Draws rows of frames: clips and their extensions (conditioning frames underlined), and animated images."""
  import numpy as np
  from PIL import Image, ImageDraw

  edge, label, gap = truth.shape[2], 92, 6
  rows = []
  for i in range(min(count, len(captions))):
    rows += [("clip", captions[i], truth[i], 0), ("extended", "", made[i], GIVEN)]
  for i in range(count, min(2 * count, len(captions))):
    rows.append(("picture", captions[i], pictures[i], 1))
  height = sum(edge + gap + (14 if caption else 0) for _, caption, _, _ in rows)
  sheet = Image.new("RGB", (label + TOTAL * (edge + 2), height), "white")
  draw, top = ImageDraw.Draw(sheet), 0
  for kind, caption, frames, given in rows:
    if caption:
      draw.text((label, top), caption, fill="black")
      top += 14
    draw.text((4, top + edge // 2 - 6), kind, fill="black")
    for k, frame in enumerate(np.asarray(frames)):
      left = label + k * (edge + 2)
      sheet.paste(Image.fromarray(frame), (left, top))
      if k < given:
        draw.rectangle((left, top + edge, left + edge - 1, top + edge + 3), fill="#2f6fde")
    top += edge + gap
  sheet.save(path)


def report(result: dict) -> str:
  """The tables."""
  lines = [
    "# Extended clips and animated images",
    "",
    f"`python -m benchmarks.frame_prediction`: {result['clips']} held-out clips of moving shapes, stages trained by",
    "gin/tiny/base_frames.gin and sr_frames.gin. From the first 5 frames, three rounds make 4 more each; compared with",
    "the clip. Frozen: the last conditioning frame, repeated. Tokenizer: its reconstruction of the clip, an upper",
    "bound. Distance: median distance between the shapes in the last frame of the round, in pixels.",
    "",
    "| stage, prompt | frames | PSNR, dB: continuation | frozen | tokenizer | distance: continuation | frozen |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, rounds in result["rounds"].items():
    for r in rounds:
      lines.append(
        f"| {name} | {r['frames']} | {r['psnr']['continuation']:.2f} | {r['psnr']['frozen']:.2f} | "
        f"{r['psnr']['tokenizer']:.2f} | {r['distance']['continuation']:.1f} | {r['distance']['frozen']:.1f} |"
      )
  lines += [
    "",
    "Caption accuracy after the conditioning frames (chance: color 17%, direction 25%):",
    "",
    "| stage, conditioning | color accuracy | direction accuracy |",
    "| --- | --- | --- |",
  ]
  for name, seen in result["obeyed"].items():
    lines.append(f"| {name} | {seen['color']:.0%} | {seen['direction']:.0%} |")
  lines += [
    "",
    "Conditioning frames in the output, PSNR in dB against the clip, and the largest difference in byte values from",
    "the tokenizer's reconstruction of the clip (the 5 frames are read from an mp4, the image from a png):",
    "",
    "| stage, conditioning | output | tokenizer | largest difference |",
    "| --- | --- | --- | --- |",
  ]
  for name, back in result["given"].items():
    lines.append(
      f"| {name} | {back['psnr']:.2f} | {back['tokenizer_psnr']:.2f} | {back['largest_difference']} |"
    )
  lines += ["", "![frames](frame_prediction.png)"]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Generates, compares, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--corpus", type=Path, required=True, help="output of data.samples --num_frames=17"
  )
  parser.add_argument("--runs", type=Path, required=True, help="folder of the runs base and sr1")
  parser.add_argument("--vae_checkpoint", type=Path, required=True)
  parser.add_argument("--text_encoder", type=Path, required=True)
  parser.add_argument("--folder", type=Path, required=True, help="folder of requests and samples")
  parser.add_argument("--count", type=int, default=48, help="maximum number of held-out clips")
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  import numpy as np

  from walt_t5x.config import gin_config
  from walt_t5x.engine.checkpoints import load_params
  from walt_t5x.generation.pixel_codec import PixelCodec
  from walt_t5x.vae.autoencoder import CausalVae

  clips, captions = held_out(args.corpus, args.count)
  bindings = [
    f'--gin.BASE_CHECKPOINT="{args.runs.resolve() / "base"}"',
    f'--gin.SR1_CHECKPOINT="{args.runs.resolve() / "sr1"}"',
    f'--gin.VAE_CHECKPOINT="{args.vae_checkpoint.resolve()}"',
    f'--gin.TEXT_ENCODER="{args.text_encoder.resolve()}"',
  ]
  folder = args.folder.resolve()
  folders = {
    name: generate(folder, name, flags, bindings)
    for name, flags in write_requests(folder, clips, captions).items()
  }
  gin_config.parse(["gin/models/vae_tiny.gin"], [], [str(ROOT)])
  codec = PixelCodec(
    gin_config.bound(CausalVae), load_params(str(args.vae_checkpoint), ema=True)["vae"]
  )

  def frames(name: str, stage: str):
    made = folders[name]
    return np.stack([np.rint(255 * made.read(s, stage)) for s in made.samples()]).astype(np.uint8)

  def first_round(name: str, stage: str):
    samples = folders[name].samples()
    files = [folders[name].path / s.sidecar["stages"][stage]["files"]["latents"] for s in samples]
    return codec.decode(np.stack([np.load(file)[0] for file in files]))

  result: dict = {"clips": len(clips), "rounds": {}, "obeyed": {}, "given": {}}
  for name, stage in (("caption", "base"), ("caption", "sr1"), ("no_direction", "base")):
    truth, made = at(clips, SIZES[stage]), frames(name, stage)
    shown = f"{stage}, {name.replace('_', ' ')}"
    own = codec.decode(codec.encode(truth))
    result["rounds"][shown] = rounds_of(made, own, truth)
    result["obeyed"][f"{shown}, 5 frames"] = obeyed(made[:, GIVEN - 1 :], captions)
  for name, count in (("caption", GIVEN), ("picture", 1)):
    for stage, side in SIZES.items():
      given = at(clips, side)[:, :count]
      own, back = codec.decode(codec.encode(given)), first_round(name, stage)[:, :count]
      what = "5 frames" if count > 1 else "picture"
      result["given"][f"{stage}, {what}"] = {
        "psnr": psnr(back, given),
        "tokenizer_psnr": psnr(own, given),
        "largest_difference": int(np.abs(back.astype(int) - own).max()),
      }
  for stage in SIZES:
    result["obeyed"][f"{stage}, caption, picture"] = obeyed(frames("picture", stage), captions)
  results.write(args.output, "frame_prediction", report(result), result)
  montage(
    args.output / "frame_prediction.png",
    at(clips, 64),
    frames("caption", "sr1"),
    captions,
    frames("picture", "sr1"),
  )


if __name__ == "__main__":
  main()
