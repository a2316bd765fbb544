"""The tokenizer: rFVD between reconstructions and their inputs; PSNR, SSIM and LPIPS of each pair.

A reconstruction and its input have the same file name without suffix, as written by `walt_t5x.reconstruct`.

Assumption: 16 frames at 128 x 128 for all four; the paper does not specify them for its tokenizer.
"""

from walt_t5x.metrics.protocols.protocol import FVD, Protocol, ScoreRule, Statistic

PROTOCOL = Protocol(
  name="tokenizer",
  scores=(
    ScoreRule(
      name="rfvd",
      statistic=FVD.statistic,
      network=FVD.network,
      layer=FVD.layer,
      network_size=FVD.network_size,
      network_resize=FVD.network_resize,
    ),
    ScoreRule(name="psnr", statistic=Statistic.PSNR),
    ScoreRule(name="ssim", statistic=Statistic.SSIM),
    ScoreRule(name="lpips", statistic=Statistic.LPIPS, network="lpips", layer="vgg16"),
  ),
  frames=16,
  size=(128, 128),
  source="arXiv:2310.05737 (MAGVIT-v2)",
)
