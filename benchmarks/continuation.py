"""Quality of extension over four rounds with a real tokenizer and a denoiser that returns the true latents.

  python -m benchmarks.continuation --vae_checkpoint=runs/vae_small --clip=bigbuckbunny.mp4 --fps=25

The denoiser (`tests/generation/perfect_denoiser.py`) returns the true latents of the window that starts with the given
frames, and noise if there are none. So the result shows only the effect of the cascade: re-encoding the last 5 frames,
rounds, concatenation and decoding. Compares 53 frames made in four rounds, and the tokenizer's reconstruction of the
clip in one pass, with the clip. Writes continuation.json and continuation.md next to this file.
"""

import argparse
from pathlib import Path

from benchmarks import results

ROUNDS, FRAMES, GIVEN = 4, 17, 5
NEW = FRAMES - GIVEN
TOTAL = FRAMES + NEW * (ROUNDS - 1)


def read_clip(path: Path, side: int, fps: float):
  """Center crop of a clip, uint8 [TOTAL, side, side, 3]."""
  from walt_t5x.generation.conditioning_media import read_clip

  media = read_clip(str(path), size=(side, side), fps=fps, conditioning_frames=TOTAL, fit="crop")
  return media.frames[:TOTAL]


def make(vae, params, clip):
  """(the clip in one pass through the tokenizer, the clip in four rounds with the true latents), uint8."""
  import numpy as np

  from data import schema
  from data.provenance import LatentStatistics, Provenance
  from tests.generation.perfect_denoiser import perfect_config
  from walt_t5x.denoiser.transformer import WaltDenoiser
  from walt_t5x.generation.cascade import Batch, Cascade
  from walt_t5x.generation.pixel_codec import PixelCodec
  from walt_t5x.generation.stage import StageConfig, StageInfo
  from walt_t5x.models.denoiser_model import DenoiserModel

  codec = PixelCodec(vae, params, rows=1)
  starts = [NEW * i for i in range(ROUNDS)]
  latents = np.concatenate([codec.encode(clip[None, s : s + FRAMES]) for s in starts])
  mean, std = latents.mean((0, 1, 2, 3)), latents.std((0, 1, 2, 3))
  statistics = LatentStatistics(channels=len(mean), mean=mean.tolist(), std=std.tolist())
  field = schema.latents_field(*latents.shape[1:4])
  module = WaltDenoiser(latent_channels=len(mean))
  config = StageConfig(
    name="base",
    model=DenoiserModel(module=module, optimizer_def=None),
    checkpoint="",
    latents=field,
  )
  # The conditioning frames have passed through the tokenizer once more than those of the windows.
  info = StageInfo(
    config=perfect_config(config, tolerance=0.5),
    checkpoint="",
    step=0,
    provenance=Provenance(
      fps=8.0, num_frames=FRAMES, vae={"fingerprint": ""}, latents={field: statistics}
    ),
  )
  windows = (latents - mean) / std
  cascade = Cascade(
    infos=[info],
    text_encoder=None,
    text_length=0,
    codec=codec,
    batch_size=1,
    load=lambda _: ({"windows": windows}, ""),
  )
  batch = Batch(indices=[0], prompts=[""], media=[None], extensions=ROUNDS - 1)
  ((sample,),) = cascade.run([batch])
  return codec.decode(codec.encode(clip[None]))[0], sample.videos["base"]


def main() -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--vae_checkpoint", required=True)
  parser.add_argument("--vae_gin_file", default="gin/models/vae_small.gin")
  parser.add_argument("--clip", type=Path, required=True)
  parser.add_argument("--side", type=int, default=64)
  parser.add_argument("--fps", type=float, default=8.0, help="at most the clip's frame rate")
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  import numpy as np

  from walt_t5x.config import gin_config
  from walt_t5x.engine.checkpoints import load_params
  from walt_t5x.vae.autoencoder import CausalVae

  gin_config.parse([args.vae_gin_file], [], [str(Path(__file__).resolve().parents[1])])
  vae = gin_config.bound(CausalVae)
  params = load_params(args.vae_checkpoint, ema=True)["vae"]
  clip = read_clip(args.clip, args.side, args.fps)
  own, made = make(vae, params, clip)

  def psnr(frames, truth) -> float:
    error = np.mean((frames.astype(np.float64) - truth) ** 2) / 255**2
    return float(-10 * np.log10(error))

  parts = [slice(0, FRAMES), *(slice(FRAMES + NEW * i, FRAMES + NEW * (i + 1)) for i in range(3))]
  rows = [
    {
      "round": i + 1,
      "frames": f"{part.start + 1}-{part.stop}",
      "tokenizer_psnr": psnr(own[part], clip[part]),
      "continuation_psnr": psnr(made[part], clip[part]),
      "first_frame_psnr": psnr(
        made[part.start : part.start + 1], clip[part.start : part.start + 1]
      ),
      "tokenizer_first_frame_psnr": psnr(
        own[part.start : part.start + 1], clip[part.start : part.start + 1]
      ),
    }
    for i, part in enumerate(parts)
  ]
  lines = [
    "# Four rounds with the true latents",
    "",
    f"`python -m benchmarks.continuation`: {TOTAL} frames of {args.clip.name}, {args.side} x {args.side}, "
    f"{Path(args.vae_gin_file).stem}; PSNR against",
    "the clip, dB. The tokenizer reconstructs the clip in one pass; the continuation is made in rounds.",
    "",
    "| round | frames | tokenizer | continuation | first frame: tokenizer | first frame: continuation |",
    "| --- | --- | --- | --- | --- | --- |",
    *(
      f"| {r['round']} | {r['frames']} | {r['tokenizer_psnr']:.2f} | {r['continuation_psnr']:.2f} | "
      f"{r['tokenizer_first_frame_psnr']:.2f} | {r['first_frame_psnr']:.2f} |"
      for r in rows
    ),
    "",
    f"All frames: tokenizer {psnr(own, clip):.2f} dB, continuation {psnr(made, clip):.2f} dB.",
  ]
  results.write(args.output, "continuation", "\n".join(lines) + "\n", rows)


if __name__ == "__main__":
  main()
