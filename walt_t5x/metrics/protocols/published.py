"""Protocols of the published benchmarks that the paper reports."""

import dataclasses

from walt_t5x.metrics.protocols.protocol import (
  FVD,
  ClipRule,
  Protocol,
  ResizeRule,
  ScoreRule,
  Statistic,
)

# UCF-101 class-conditional: FVD and IS.
# 10,000 samples per fold at 128 x 128, 16 frames (a 17-frame model drops its last frame). Labels are drawn from the
# training videos; references are random clips of the 9,537 training videos.
C3D_IS = ScoreRule(
  name="is",
  statistic=Statistic.INCEPTION_SCORE,
  network="c3d",
  layer="logits",
  network_size=(112, 112),
  network_resize=ResizeRule.ALIGN_CORNERS,
)

UCF101 = Protocol(
  name="ucf101_class_conditional",
  scores=(FVD, C3D_IS),
  frames=16,
  size=(128, 128),
  fps=25.0,
  reference_clip=ClipRule.RANDOM,
  sample_count=10_000,
  reference_count=10_000,
  folds=4,
  source="arXiv:2212.05199 (MAGVIT), arXiv:1811.09245 (TGANv2) for IS",
)

# UCF-101 by StyleGAN-V's evaluation: 2,048 samples and 2,048 random clips of all 13,320 videos, at 256 x 256 and the
# files' rate. I3D resizes with half-pixel centers, and covariances are divided by n.
UCF101_STYLEGAN_V = Protocol(
  name="ucf101_stylegan_v",
  scores=(dataclasses.replace(FVD, network_resize=ResizeRule.HALF_PIXEL, covariance="population"),),
  frames=16,
  size=(256, 256),
  reference_clip=ClipRule.RANDOM,
  sample_count=2048,
  reference_count=2048,
  source="arXiv:2112.14683 (StyleGAN-V), its released metric fvd2048_16f",
)

# UCF-101 text to video, zero-shot: FVD and IS.
# 10,000 samples, one prompt per class; references are the central 16 frames of 10,000 training videos.
# Assumption: references have the rate of the samples, 8 fps; at another one motion alone would set them apart.
UCF101_ZERO_SHOT = Protocol(
  name="ucf101_zero_shot",
  scores=(FVD, C3D_IS),
  frames=16,
  # Assumption: scored at the size of the base stage; the paper does not specify it.
  size=(128, 128),
  fps=8.0,
  sample_clip=ClipRule.CENTRAL,
  reference_clip=ClipRule.CENTRAL,
  sample_count=10_000,
  reference_count=10_000,
  source="arXiv:2312.06662, arXiv:2312.14125 (VideoPoet)",
)

# Kinetics-600 frame prediction: FVD.
# The condition is 5 real frames (2 latent frames). Clips have 16 frames, including the conditioning frames as decoded;
# they are generated at 128 x 128 and scored at 64 x 64. 50,000 clips per fold; the references are 6 clips of every
# evaluation video.
K600 = Protocol(
  name="k600_frame_prediction",
  scores=(FVD,),
  frames=16,
  source_size=(128, 128),
  size=(64, 64),
  fps=25.0,
  # Assumption: the rule for resizing 128 x 128 to 64 x 64; the paper does not specify it.
  size_resize=ResizeRule.LEGACY,
  reference_clip=ClipRule.RANDOM,
  sample_count=50_000,
  reference_count=50_000,
  reference_clips_per_video=6,
  folds=4,
  source="arXiv:2212.05199 (MAGVIT)",
)

# ImageNet 256 x 256 class-conditional: FID and IS.
# 50,000 samples compared with the published reference statistics (an .npz with mu and sigma); IS with 10 splits of
# 5,000 and the softmax of the logits without bias.
_INCEPTION = {
  "network": "inception",
  "network_size": (299, 299),
  "network_resize": ResizeRule.LEGACY,
}
FID = ScoreRule(name="fid", statistic=Statistic.FRECHET, layer="pool_3", **_INCEPTION)
IS = ScoreRule(
  name="is",
  statistic=Statistic.INCEPTION_SCORE,
  layer="logits_unbiased",
  splits=10,
  **_INCEPTION,
)

IMAGENET256 = Protocol(
  name="imagenet256",
  scores=(FID, IS),
  frames=1,
  size=(256, 256),
  sample_count=50_000,
  source="arXiv:2105.05233 (ADM): its evaluation suite and reference statistics",
)

# The tokenizer: rFVD between reconstructions and their inputs; PSNR, SSIM and LPIPS of each pair.
# A reconstruction and its input have the same file name without suffix, as written by `walt_t5x.reconstruct`.
# Assumption: 16 frames at 128 x 128 for all four; the paper does not specify them for its tokenizer.
TOKENIZER = Protocol(
  name="tokenizer",
  scores=(
    dataclasses.replace(FVD, name="rfvd"),
    ScoreRule(name="psnr", statistic=Statistic.PSNR),
    ScoreRule(name="ssim", statistic=Statistic.SSIM),
    ScoreRule(name="lpips", statistic=Statistic.LPIPS, network="lpips", layer="vgg16"),
  ),
  frames=16,
  size=(128, 128),
  source="arXiv:2310.05737 (MAGVIT-v2)",
)
