"""The VAE and the text encoder of a worker: loaded once per process, shared by its threads, with fixed batch shapes.

A fixed shape compiles once and makes the encoding of a row independent of the number of rows in its batch.
"""

import collections
import dataclasses
import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data import schema
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.media.pixels import to_float

_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
  """What a worker needs to load both encoders; plain values that can be pickled and hashed.

  Without a VAE, it is that of a cache of pixels, which trains the VAE: nothing is loaded.

  Args:
    vae_config: JSON object of CausalVae's fields, as `vae_fields` writes it.
    vae_checkpoint: `checkpoint_<step>` folder, or a model_dir.
    vae_ema: whether to load the averaged weights.
    text_folder: T5 folder in Hugging Face layout; '' stores no text.
    max_text_length: tokens per caption, eos included.
    batch_size: clips per VAE call.
    image_batch_size: images per VAE call.
  """

  vae_config: str = ""
  vae_checkpoint: str = ""
  vae_ema: bool = False
  text_folder: str = ""
  max_text_length: int = 64
  batch_size: int = 8
  image_batch_size: int = 32

  @property
  def batch_sizes(self) -> dict[str, int]:
    """Batch sizes, which the last bit of the latents may depend on; empty for pixels, which do not."""
    sizes = {"batch_size": self.batch_size, "image_batch_size": self.image_batch_size}
    return sizes if self.vae_config else {}


class PixelEncoders:
  """Has the interface of `Encoders`, but returns pixels unchanged and no text embeddings."""

  def field(self, frames: int, height: int, width: int) -> str:
    """Name of the record's field."""
    return schema.pixels_field(frames, height, width)

  def start_encode(self, pixels: np.ndarray, rows: int) -> np.ndarray:
    """The pixels."""
    return pixels

  def encode_text(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Empty tokens and embeddings."""
    return no_text(texts)

  def token_lengths(self, texts: Sequence[str]) -> list[int]:
    """None has tokens."""
    return [0] * len(texts)


def no_text(texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
  """Empty tokens (0,) and embedding (0, 0) of each caption."""
  return [(np.zeros(0, np.int32), np.zeros((0, 0), np.float32)) for _ in texts]


class CaptionCache:
  """Encodes each caption of a shard once: embeddings of repeated captions are cached until their last use.

  `captions` are those of every row of the shard. Beyond `max_bytes` of embeddings, captions are encoded again.
  """

  def __init__(self, encoders: Any, captions: Iterable[str], *, max_bytes: int = 256 << 20):
    self._encoders, self._max_bytes = encoders, max_bytes
    self._left = collections.Counter(captions)
    self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Same as `encode_text` of the encoders."""
    fresh = [text for text in dict.fromkeys(texts) if text not in self._kept]
    found = self._encoders.encode_text(fresh) if fresh else []
    known = self._kept | dict(zip(fresh, found, strict=True))
    self._left.subtract(texts)
    self._kept, room = {}, self._max_bytes
    for text, encoded in known.items():
      size = sum(array.nbytes for array in encoded)
      if self._left[text] > 0 and size <= room:
        self._kept[text] = encoded
        room -= size
    return [known[text] for text in texts]


def vae_fields(bindings: Mapping[str, Any]) -> dict[str, Any]:
  """Every field of CausalVae as plain JSON values: the given bindings, and defaults for the rest.

  Raises:
    ValueError: if a name is not a field.
  """
  import jax.numpy as jnp

  from walt_t5x.vae.autoencoder import CausalVae

  fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(CausalVae)}
  del fields["parent"], fields["name"]
  if unknown := sorted(set(bindings) - set(fields)):
    raise ValueError(f"CausalVae has no fields {unknown}; expected some of {sorted(fields)}")
  fields |= bindings
  fields["dtype"] = jnp.dtype(fields["dtype"]).name
  return json.loads(json.dumps(fields, default=list))


def tokenizer_of_run(run: str) -> tuple[dict[str, Any], bool]:
  """(the result of `vae_fields` for the tokenizer that a run trained, whether the run has averaged weights).

  Args:
    run: its folder, or a checkpoint in it.

  Raises:
    FileNotFoundError: the run has no record of its model, or no checkpoint.
    ValueError: it trained another model.
  """
  from walt_t5x.engine.checkpoints import has_average
  from walt_t5x.engine.run_record import read_model

  fields = dict(read_model(run)["model"])
  if (found := fields.pop("class")) != "CausalVae":
    raise ValueError(f"{run} trained a {found}: set --vae_checkpoint to the run of a tokenizer")
  return vae_fields(fields), has_average(run)


def build_vae(fields: Mapping[str, Any]) -> Any:
  """CausalVae from the result of `vae_fields`."""
  import jax.numpy as jnp

  from walt_t5x.vae.autoencoder import CausalVae

  values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  values["dtype"] = jnp.dtype(values["dtype"])
  return CausalVae(**values)


class Encoders:
  """Both encoders with their weights on the default device."""

  def __init__(self, config: EncoderConfig):
    import jax
    import jax.numpy as jnp
    from flax import traverse_util

    from walt_t5x.engine.checkpoints import load_params
    from walt_t5x.files.fingerprint import weights_fingerprint
    from walt_t5x.text.encoder import TextEncoder

    self.config = config
    vae = build_vae(json.loads(config.vae_config))
    saved = load_params(config.vae_checkpoint, ema=config.vae_ema)
    params = select_vae_params(vae, saved, config.vae_checkpoint)
    self.vae_fingerprint = weights_fingerprint(traverse_util.flatten_dict(params, sep="/"))
    self._params = jax.tree.map(jnp.asarray, params)
    self.text = TextEncoder.load(config.text_folder) if config.text_folder else None

    @jax.jit
    def encode(params, pixels):
      video = to_float(pixels)
      return vae.apply({"params": params}, video, method="encode").mean.astype(jnp.bfloat16)

    @jax.jit
    def mean_squared_error(params, latents, pixels):
      video = vae.apply({"params": params}, latents.astype(jnp.float32), method="decode")
      error = jnp.clip(video.astype(jnp.float32), 0, 1) - to_float(pixels)
      return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))

    self._encode, self._mean_squared_error = encode, mean_squared_error

  def field(self, frames: int, height: int, width: int) -> str:
    """Name of the record's field."""
    return schema.latents_field(frames, height, width)

  def start_encode(self, pixels: np.ndarray, rows: int) -> Any:
    """Posterior means of up to `rows` rows, bfloat16, dispatched asynchronously on the device.

    Args:
      pixels: uint8 (n, frames, height, width, 3), n <= rows; padded with zeros.
      rows: batch size of the compiled function.
    """
    padding = np.zeros((rows - len(pixels), *pixels.shape[1:]), np.uint8)
    return self._encode(self._params, np.concatenate([pixels, padding]))[: len(pixels)]

  def psnr(self, latents: Any, pixels: np.ndarray, rows: int) -> np.ndarray:
    """Decode PSNR in dB of each row, float64 (n,); at most 100.

    Args:
      latents: result of `start_encode` for these pixels.
      pixels: uint8 (n, frames, height, width, 3).
      rows: batch size of the compiled function.
    """
    from walt_t5x.metrics.pixel_distances import psnr_of_error

    fill = ((0, rows - len(pixels)), (0, 0), (0, 0), (0, 0), (0, 0))
    error = self._mean_squared_error(
      self._params, np.pad(np.asarray(latents), fill), np.pad(pixels, fill)
    )
    return np.asarray(psnr_of_error(np.asarray(error[: len(pixels)], np.float64)))

  def encode_text(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids (n,) and float32 embedding (n, E) of each caption, empty without a text encoder.

    Equal captions are encoded once.
    """
    if self.text is None:
      return no_text(texts)
    distinct = sorted(set(texts))
    ids = self.text.tokenize(distinct, self.config.max_text_length)
    known = dict(zip(distinct, zip(ids, self.text.encode(ids))))
    return [known[text] for text in texts]

  def token_lengths(self, texts: Sequence[str]) -> list[int]:
    """Tokens of each caption before it is cut to the maximum, eos included; 0 without a text encoder."""
    return [self.text.vocabulary.length(text) if self.text else 0 for text in texts]


def get_encoders(config: EncoderConfig) -> Any:
  """The encoders of this process for a config; the first caller loads them, the others wait."""
  with _LOCK:
    return _load(config)


@functools.lru_cache(maxsize=4)
def _load(config: EncoderConfig) -> Encoders | PixelEncoders:
  return Encoders(config) if config.vae_config else PixelEncoders()


def select_vae_params(vae: Any, params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """Selects the VAE's parameters from a checkpoint, which may also hold a discriminator.

  Raises:
    Mismatch: naming the first parameter that is missing, unexpected or of another shape.
  """
  import jax
  import jax.numpy as jnp
  from flax import traverse_util

  frames = 1 + vae.temporal_factor
  video = jnp.zeros((1, frames, 2 * vae.spatial_factor, 2 * vae.spatial_factor, 3))

  def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: np.shape(value) for name, value in flat.items()}

  wanted = shapes_of(jax.eval_shape(vae.init, jax.random.key(0), video)["params"])

  def differing(tree: Any) -> list[str]:
    return sorted({key for key, _ in shapes_of(tree).items() ^ wanted.items()})

  candidates = [params, *(tree for tree in params.values() if isinstance(tree, Mapping))]
  best = min(candidates, key=lambda tree: len(differing(tree)))
  if keys := differing(best):
    got, expected = (shapes.get(keys[0], "has none") for shapes in (shapes_of(best), wanted))
    raise Mismatch(
      f"{name} does not fit the VAE of --vae_gin_file; {len(keys)} parameters differ, first {keys[0]}: checkpoint "
      f"{got}, configured VAE {expected}; set the gin file that the checkpoint was trained with"
    )
  return best


def origin(loaded: Any) -> dict[str, Any]:
  """Provenance of the encoders, without the latent statistics."""
  ((null_ids, null_embedding),) = loaded.encode_text([""])
  text_encoder = {}
  if loaded.text is not None:
    text_encoder = {
      "fingerprint": loaded.text.fingerprint,
      "embedding_dim": loaded.text.embedding_dim,
      "max_length": loaded.config.max_text_length,
      "folder": loaded.config.text_folder,
    }
  return {
    "vae": {
      "fingerprint": loaded.vae_fingerprint,
      "config": json.loads(loaded.config.vae_config),
      "checkpoint": loaded.config.vae_checkpoint,
    },
    "text_encoder": text_encoder,
    "null_ids": null_ids,
    "null_embedding": null_embedding,
  }
