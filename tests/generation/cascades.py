"""Cascades with random weights at the smallest size, with the paper's frames: 17, and 12 more from the last 5."""

from pathlib import Path

from tests import tiny_denoiser
from tests.generation.random_cascade import write_random_cascade
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.diffusion.guidance import ConstantGuidance
from walt_t5x.generation.loading import CascadeConfig, load_cascade, read_infos
from walt_t5x.generation.stage import StageConfig
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig
from walt_t5x.vae.autoencoder import CausalVae

BASE, SR = "latents/5x4x4", "latents/5x8x8"
SCALE = 4  # Pixels per latent cell.


def vae(**changes):
  fields = {
    "latent_channels": 4,
    "base_channels": 4,
    "channel_multipliers": (1, 1, 1),
    "num_res_blocks": 0,
    "temporal_downsample": (True, True),
  }
  return CausalVae(**(fields | changes))


def model(*, steps=3, guidance=2.0, **module):
  fields = tiny_denoiser.FIELDS | {
    "spatiotemporal_window": (5, 4, 4),
    "text_dim": 8,
    "frame_prediction": True,
  }
  return DenoiserModel(
    module=WaltDenoiser(**(fields | module)),
    optimizer_def=None,
    sampler=SamplerConfig(
      num_steps=steps, guidance=None if guidance is None else ConstantGuidance(guidance)
    ),
  )


def config(folder: Path, *, stages=("base", "sr1"), base=None, sr=None, **changes) -> CascadeConfig:
  """The gin configuration of a cascade in `folder`."""
  made = {
    "base": StageConfig(
      name="base", model=base or model(), checkpoint=str(folder / "base"), latents=BASE
    ),
    "sr1": StageConfig(
      name="sr1",
      model=sr or model(patch_size=2, low_resolution_scale=2, pooled_text=False, guidance=None),
      checkpoint=str(folder / "sr1"),
      latents=SR,
      low_resolution=BASE,
      ema=False,
    ),
  }
  fields = {
    "stages": [made[name] for name in stages],
    "vae": vae(),
    "vae_checkpoint": str(folder / "vae"),
    "text_encoder": str(folder / "text"),
    "text_length": 8,
    "decode_rows": 2,
  }
  return CascadeConfig(**(fields | changes))


def written(folder: Path, **changes) -> CascadeConfig:
  """`config`, with every file that it refers to."""
  made = config(folder, **changes)
  write_random_cascade(made)
  return made


def loaded(made: CascadeConfig, *, batch_size=2):
  """The loaded cascade."""
  return load_cascade(made, read_infos(made), batch_size=batch_size)
