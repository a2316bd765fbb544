"""Initializes a video tokenizer from an image tokenizer of the same widths.

The 2D kernel becomes the last temporal slice of the 3D kernel; the other slices are zero. A causal
convolution then ignores the past, and the inflated tokenizer gives the same result for an image as
the image tokenizer, to rounding.
Source: MAGVIT-v2 (2310.05737), section 3.2, and W.A.L.T, section 4.1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from walt_t5x.types import Params


def inflate_params(image_params: Params, video_params: Params) -> Params:
  """Inflates image tokenizer parameters to the shapes of the video tokenizer.

  Args:
    image_params: 'params' of a CausalVae with temporal_kernel 1 and the same widths.
    video_params: 'params' of the video CausalVae, or their shapes; only names and shapes are read.

  Raises ValueError if a name is missing on one side, or a shape cannot be inflated.
  """
  source: dict[tuple[str, ...], Any] = flatten_dict(image_params)
  target: dict[tuple[str, ...], Any] = flatten_dict(video_params)
  if source.keys() != target.keys():
    odd = sorted("/".join(path) for path in source.keys() ^ target.keys())
    raise ValueError(
      f"inflate_params: parameters {odd[:4]} are in one tokenizer only; expected the same "
      "num_res_blocks, posterior and level widths."
    )
  inflated = {
    path: _inflate("/".join(path), np.asarray(source[path]), tuple(leaf.shape))
    for path, leaf in target.items()
  }
  return unflatten_dict(inflated)


def inflate_state(
  state_dict: Mapping[str, Any], target_state_dict: Mapping[str, Any], *, is_resuming: bool = False
) -> Mapping[str, Any]:
  """Inflates the saved state of an image tokenizer, for `RestoreCheckpointConfig.state_transformation_fns`.

  The inflated parameters become the parameters and their average. Everything else (moments, step, discriminator)
  starts from scratch, so set `fallback_to_scratch = True`. The state of a resumed run is returned unchanged.
  `target_state_dict` has the shapes of the state of the video tokenizer. Raises ValueError as `inflate_params`.
  """
  if is_resuming:
    return state_dict
  target = flatten_dict(target_state_dict)
  video_shapes = unflatten_dict(
    {name[2:]: leaf for name, leaf in target.items() if name[:2] == ("target", "vae")}
  )
  inflated = flatten_dict(inflate_params(state_dict["target"]["vae"], video_shapes))
  found = {("target", "vae", *name): value for name, value in inflated.items()}
  for name in target:
    # The average is saved as .../ema/vae/<parameter>, next to a count.
    where = [i for i, part in enumerate(name) if part == "ema" and name[i + 1 : i + 2] == ("vae",)]
    if name[0] == "state" and where:
      found[name] = inflated[name[where[0] + 2 :]]
  return unflatten_dict(found)


def _inflate(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  # Temporal upsampling has s_t times the channels, s_t outermost: both new frames are copies of the
  # image.
  if name.split("/")[-2].endswith("_up") and shape[-1] % value.shape[-1] == 0:
    value = np.concatenate([value] * (shape[-1] // value.shape[-1]), axis=-1)
  if value.ndim == 5 and len(shape) == 5:
    # Last slice in time. In space a 3x3 stride-2 kernel goes to the end of a 4x4 kernel, because
    # SAME padding adds one more zero before the larger window.
    grow = [want - have for want, have in zip(shape[:3], value.shape[:3])]
    if min(grow) >= 0:
      value = np.pad(value, [(extra, 0) for extra in grow] + [(0, 0), (0, 0)])
  if value.shape != shape:
    raise ValueError(
      f"inflate_params: {name} has shape {value.shape} after inflation, expected {shape}; "
      "set the same channel_multipliers, base_channels and latent_channels in both."
    )
  return value
