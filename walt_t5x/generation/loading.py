"""Builds a cascade from its gin configuration; reports every error before a stage's weights are read."""

import dataclasses
from collections.abc import Sequence

import jax

from walt_t5x.generation import checks, weight_sharding
from walt_t5x.generation.cascade import Cascade
from walt_t5x.generation.pixel_codec import PixelCodec
from walt_t5x.generation.stage import StageConfig, StageInfo
from walt_t5x.generation.stage_sampler import mesh_for
from walt_t5x.text.encoder import TextEncoder
from walt_t5x.types import Params
from walt_t5x.vae.autoencoder import CausalVae


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeConfig:
  """Configuration of a cascade; gin files bind its fields to `generate_script.generate`.

  Attributes:
    stages: base first.
    text_encoder: folder of the T5 encoder; unused by stages without text.
    text_length: L of the stages.
    vae_ema: use the tokenizer's averaged weights; None for those of the two that made the training data.
    decode_rows: clips that the tokenizer holds in memory at a time.
    decode_group: latent frames that it holds in memory at a time, after the first.
    one_at_a_time: hold the weights of only one stage at a time.
    stage_weights: "sharded" splits the stages' weights over the devices, "replicated" holds all of them on each, "auto"
      decides by their size, see `weight_sharding`. Without effect on one device. Tokenizer and text encoder are never
      split.
  """

  stages: Sequence[StageConfig]
  vae: CausalVae
  vae_checkpoint: str
  text_encoder: str | None
  text_length: int
  vae_ema: bool | None = True
  decode_rows: int = 8
  decode_group: int = 1
  one_at_a_time: bool = False
  stage_weights: str = weight_sharding.AUTO

  def __post_init__(self):
    weight_sharding.check_setting(self.stage_weights)

  @property
  def reads_text(self) -> bool:
    """Whether any stage reads text."""
    return any(stage.module.text_dim for stage in self.stages)

  @property
  def classes(self) -> int:
    """Number of classes of the stages; 0 for none."""
    return max(stage.module.num_classes for stage in self.stages)


def read_infos(config: CascadeConfig) -> list[StageInfo]:
  """The stages without their weights, checked against each other and against their checkpoints.

  Raises:
    FileNotFoundError: a checkpoint or its provenance is missing.
    ValueError: stages or checkpoints are incompatible; names both sides.
  """
  checks.check_order(config.stages, config.vae)
  infos = [StageInfo.read(stage) for stage in config.stages]
  checks.check_provenance(infos)
  for info in infos:
    checks.check_network(info, text_length=config.text_length)
  return infos


def trained_fps(config: CascadeConfig) -> float:
  """Frames per second of the training data; 0 if unknown. Raises as `read_infos` does, but checks no network."""
  checks.check_order(config.stages, config.vae)
  return StageInfo.read(config.stages[0]).provenance.fps


def load_tokenizer(config: CascadeConfig, infos: Sequence[StageInfo]) -> Params:
  """The tokenizer's parameters.

  Raises:
    FileNotFoundError: the checkpoint is missing.
    ValueError: it is not the tokenizer of the stages; names both fingerprints.
  """
  return checks.tokenizer_params(
    config.vae,
    config.vae_checkpoint,
    ema=config.vae_ema,
    expected=infos[0].provenance.vae["fingerprint"],
    setting="generate.vae_checkpoint (or vae_ema)",
  )


def load_text_encoder(config: CascadeConfig, infos: Sequence[StageInfo]) -> TextEncoder | None:
  """The text encoder; None if no stage reads text.

  Raises:
    FileNotFoundError: its folder is missing.
    ValueError: it is not set, or not that of the stages; names both fingerprints.
  """
  if not config.reads_text:
    return None
  if not config.text_encoder:
    raise ValueError("the stages read text: set generate.text_encoder")
  expected = infos[0].provenance.text_encoder["fingerprint"]
  return checks.load_text_encoder(config.text_encoder, expected=expected)


def _sharded(config: CascadeConfig, infos: Sequence[StageInfo]) -> bool:
  """Whether the stages' weights are split over several devices."""
  sizes = [info.weight_bytes() for info in infos]
  return weight_sharding.is_sharded(
    config.stage_weights,
    weight_bytes=max(sizes) if config.one_at_a_time else sum(sizes),
    device_bytes=weight_sharding.memory_of(jax.local_devices()[0]),
  )


def load_cascade(
  config: CascadeConfig,
  infos: Sequence[StageInfo],
  *,
  batch_size: int,
  short_batches: bool = False,
) -> Cascade:
  """Loads the cascade onto all local devices; `infos` come from `read_infos`.

  Args:
    short_batches: pad a short batch to 1, 2, 4, ... clips per device only, not to `batch_size`: for requests that come
      one by one. Each number is compiled when it is first needed, and the decoder takes one clip per device at a time.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: tokenizer or text encoder are not those of the stages; names both sides.
  """
  text_encoder, params = load_text_encoder(config, infos), load_tokenizer(config, infos)
  mesh = mesh_for(batch_size, jax.local_devices())
  devices = mesh.shape["data"] if mesh else 1
  rows = devices if short_batches else min(config.decode_rows, batch_size)
  codec = PixelCodec(config.vae, params, rows=rows, group=config.decode_group, mesh=mesh)
  return Cascade(
    infos=infos,
    text_encoder=text_encoder,
    text_length=config.text_length,
    codec=codec,
    batch_size=batch_size,
    mesh=mesh,
    sharded=mesh is not None and _sharded(config, infos),
    one_at_a_time=config.one_at_a_time,
    short_batches=sizes_below(batch_size, step=devices) if short_batches else (),
  )


def sizes_below(batch_size: int, *, step: int) -> list[int]:
  """The sizes of short batches: `step`, twice, four times as much and so on, below `batch_size`."""
  sizes = [step]
  while sizes[-1] < batch_size:
    sizes.append(2 * sizes[-1])
  return sizes[:-1]
