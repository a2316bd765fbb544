"""The cascade: text -> base latents -> super-resolution latents -> pixels, extended from its last frames.

A stage makes 1 + k f_t frames at a time. Each extension is conditioned on the last 1 + f_t frames, encoded again by the
causal tokenizer (2 latent frames), and adds the rest: 17 + 12 + 12 + ... frames. Each stage is conditioned on its own
last frames, so a stage makes all extensions before the next one starts.

Assumption: the conditioning latents replace those that the network returns for them, once, after the last step. As the
tokenizer is causal, the first frames of a clip are then the tokenizer's reconstruction of the conditioning frames.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data import schema
from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.generation.conditioning_media import ConditioningMedia
from walt_t5x.generation.pixel_codec import PixelCodec
from walt_t5x.generation.stage import StageConfig, StageInfo
from walt_t5x.generation.stage_sampler import StageSampler, noise_for
from walt_t5x.text.encoder import TextEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Clips that are generated together, and everything that determines them except the cascade.

  Attributes:
    indices: index of each sample; determines its noise.
    prompts: one per clip; empty strings if the stages read no text.
    labels: one per clip, or empty if the stages have no classes.
    media: what each clip starts from; all None, all images or all videos.
    seed: of the noise, with the index.
    seeds: one per clip in place of `seed`, for clips of different requests.
    extensions: 0 makes the number of frames that the stages were trained on; each extension adds frames.
    decoded_conditioning: start with the tokenizer's reconstruction of a clip's last frames instead of the entire clip.
  """

  indices: Sequence[int]
  prompts: Sequence[str]
  labels: Sequence[int] = ()
  media: Sequence[ConditioningMedia | None] = ()
  seed: int = 0
  seeds: Sequence[int] = ()
  extensions: int = 0
  decoded_conditioning: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One generated clip.

  Attributes:
    videos: stage name -> frames [T, H, W, 3] uint8, base first.
    latents: stage name -> latents of the tokenizer [1 + extensions, t, h, w, c].
    seconds: stage name -> {"sample", "decode", "encode"}: wall time of its batch.
  """

  index: int
  prompt: str
  videos: Mapping[str, np.ndarray]
  latents: Mapping[str, np.ndarray]
  seconds: Mapping[str, Mapping[str, float]]


class Cascade:
  """Compatible stages (see `checks`), the text encoder that they were trained with, and the tokenizer.

  Args:
    infos: the stages, base first.
    text_encoder: encoder of the prompts; None if no stage reads text.
    text_length: L that the stages were trained with.
    mesh: devices to sample on, see `mesh_for`.
    sharded: whether these devices split each stage's weights; otherwise each device holds all of them.
    load: reads a stage's weights; returns them and their fingerprint. None reads those of its checkpoint.
    one_at_a_time: hold only one stage's weights and run it over all batches of a call to `run`.
    short_batches: numbers of clips below `batch_size` that batches may have, each a compiled program.
  """

  def __init__(
    self,
    *,
    infos: Sequence[StageInfo],
    text_encoder: TextEncoder | None,
    text_length: int,
    codec: PixelCodec,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
    sharded: bool = False,
    load: Callable[[StageInfo], tuple[Any, str]] | None = None,
    one_at_a_time: bool = False,
    short_batches: Sequence[int] = (),
  ):
    self.infos = list(infos)
    self.codec = codec
    self.text_encoder = text_encoder
    self.text_length = text_length
    self.batch_size = batch_size
    self.one_at_a_time = one_at_a_time
    self._sizes = sorted({*short_batches, batch_size})
    self.fingerprints: dict[str, str] = {}
    self._load = load
    self._samplers = {
      i.config.name: StageSampler(i.config, mesh=mesh, sharded=sharded) for i in self.infos
    }
    self._loaded: dict[str, Any] = {}

  def run(
    self,
    batches: Sequence[Batch],
    *,
    stages: int | None = None,
    progress: Callable[[str, int], None] = lambda stage, extension: None,
    stage_finished: Callable[[str, Sequence[Sample]], None] | None = None,
  ) -> Iterator[list[Sample]]:
    """Yields the samples batch by batch.

    A short batch is padded with its last clip to the next number of clips that programs are compiled for: `batch_size`,
    or one of `short_batches`.

    Args:
      batches: at most `batch_size` clips each.
      stages: number of stages to run, from the base; all by default.
      progress: called with (stage, extension) after each extension of each stage of each batch; 0 is the first part.
      stage_finished: called with (stage, samples of a batch) when the batch's clips of a stage are complete, before
        another stage or batch starts; the samples have the stages so far.
    """
    groups = [list(batches)] if self.one_at_a_time else [[batch] for batch in batches]
    for group in groups:
      work = [self._work(batch) for batch in group]
      for info, below in zip(self.infos[:stages], [None, *self.infos]):
        params = self._weights(info)
        for one in work:
          self._run_stage(info, below, params, one, progress=progress)
          if stage_finished is not None:
            stage_finished(info.config.name, one.samples())
        del params
        if self.one_at_a_time:
          self._loaded.pop(info.config.name)
      for one in work:
        yield one.samples()

  def upscale(
    self, name: str, low: np.ndarray, prompts: Sequence[str], *, seed: int, first_index: int = 0
  ) -> np.ndarray:
    """Runs one super-resolution stage alone; returns frames [B, T, H, W, 3] uint8.

    Args:
      name: name of the stage.
      low: latents of the stage below [B, t, h, w, c], as the tokenizer makes them; at most `batch_size` clips.
      prompts: one per clip.
      seed, first_index: seed and index of the first clip determine the noise.

    Raises:
      ValueError: no super-resolution stage has this name.
    """
    names = [info.config.name for info in self.infos]
    if name not in names[1:]:
      raise ValueError(f"no super-resolution stage {name!r}: expected one of {names[1:]}")
    at = names.index(name)
    info, below = self.infos[at], self.infos[at - 1]
    indices = range(first_index, first_index + len(low))
    work = self._work(Batch(indices=indices, prompts=prompts, seed=seed))
    fill = np.repeat(low[-1:], len(work.batch.indices) - len(low), axis=0)
    work.latents[below.config.name] = [np.concatenate([low, fill])]
    self._run_stage(info, below, self._weights(info), work)
    return np.stack(work.videos[name][: len(low)])

  def encode_text(self, prompts: Sequence[str]) -> tuple[Any, Any]:
    """Prompts -> embeddings [B, 1, L, E] and mask [B, 1, L], or Nones if no stage reads text."""
    if self.text_encoder is None:
      return None, None
    tokens = self.text_encoder.tokenize(list(prompts), self.text_length)
    shape = (len(prompts), 1, self.text_length, self.text_encoder.embedding_dim)
    text, mask = np.zeros(shape, np.float32), np.zeros(shape[:3], bool)
    for row, embedding in enumerate(self.text_encoder.encode(tokens)):
      text[row, 0, : len(embedding)] = embedding
      mask[row, 0, : len(embedding)] = True
    return jnp.asarray(text), jnp.asarray(mask)

  def cut_prompts(self, prompts: Iterable[str]) -> dict[str, int]:
    """Prompts of more tokens than the stages read -> their number of tokens; only the first `text_length` are used."""
    if self.text_encoder is None:
      return {}
    distinct = list(dict.fromkeys(prompts))
    counts = map(len, self.text_encoder.tokenize(distinct, sys.maxsize))
    return {prompt: n for prompt, n in zip(distinct, counts) if n > self.text_length}

  def _work(self, batch: Batch) -> "_Work":
    """The batch with encoded text, padded to a number of clips that programs are compiled for."""
    rows = len(batch.indices)
    if rows > self.batch_size:
      raise ValueError(
        f"got a batch of {rows} clips, expected at most batch_size={self.batch_size}"
      )
    size = next(size for size in self._sizes if size >= rows)
    per_clip = ("indices", "prompts", "labels", "media", "seeds")
    lists = {name: list(getattr(batch, name)) for name in per_clip}
    for values in lists.values():
      values += values[-1:] * (size - rows)
    batch = dataclasses.replace(batch, **lists)
    return _Work(batch=batch, rows=rows, text=self.encode_text(batch.prompts))

  def _weights(self, info: StageInfo) -> Any:
    name = info.config.name
    if name not in self._loaded:
      sampler = self._samplers[name]
      params, self.fingerprints[name] = (self._load or sampler.load)(info)
      self._loaded[name] = sampler.place(params)
    return self._loaded[name]

  def _run_stage(
    self,
    info: StageInfo,
    below: StageInfo | None,
    params: Any,
    work: "_Work",
    *,
    progress: Callable[[str, int], None] = lambda stage, extension: None,
  ) -> None:
    """Makes a stage's clips of one batch, with all extensions."""
    name, size = info.config.name, stage_size(info.config, self.codec.vae)
    media = [medium for medium in work.batch.media if medium is not None]
    # Clips of one request share their media.
    distinct = {id(medium): medium for medium in media}
    at_size = {key: medium.at(size) for key, medium in distinct.items()}
    starts = [at_size[id(medium)] for medium in media]
    tail = None
    if media:
      tail = np.stack([clip[-medium.conditioning_frames :] for clip, medium in zip(starts, media)])
    # A continued clip starts with the conditioning clip; one from an image with the image's reconstruction.
    entire_clip = tail is not None and tail.shape[1] > 1 and not work.batch.decoded_conditioning
    videos = []
    latents, seconds = [], {"sample": 0.0, "decode": 0.0, "encode": 0.0}
    for extension in range(1 + work.batch.extensions):
      low = None if below is None else work.latents[below.config.name][extension]
      started = time.monotonic()
      known = None if tail is None else self.codec.encode(tail)
      encoded = time.monotonic()
      sampled = self._sample(info, params, work, known=known, low=low, extension=extension)
      done = time.monotonic()
      pixels = self.codec.decode(sampled)
      seconds["encode"] += encoded - started
      seconds["sample"] += done - encoded
      seconds["decode"] += time.monotonic() - done
      shown = tail.shape[1] if tail is not None and (videos or entire_clip) else 0
      videos.append(pixels[:, shown:])
      latents.append(sampled)
      tail = pixels[:, -(1 + self.codec.vae.temporal_factor) :]
      progress(name, extension)
    work.latents[name], work.seconds[name] = latents, seconds
    made = np.concatenate(videos, axis=1)
    # Continued clips may differ in length.
    work.videos[name] = (
      [np.concatenate([clip, new]) for clip, new in zip(starts, made)]
      if entire_clip
      else list(made)
    )

  def _sample(
    self, info: StageInfo, params: Any, work: "_Work", *, known, low, extension: int
  ) -> np.ndarray:
    """Latents of the tokenizer [B, t, h, w, c]; the first frames are `known`, if it is not None."""
    config, shape = info.config, info.latents_shape
    indices = np.asarray(work.batch.indices)

    def noise(what: str, shape: tuple[int, ...] = shape) -> Array:
      seeds = work.batch.seeds or work.batch.seed
      return noise_for(seeds, what, indices, shape, extension=extension)

    text, mask = work.text if config.module.text_dim else (None, None)
    null = labels = None
    if text is not None:
      null = jnp.asarray(info.provenance.null_embedding)
      null = jnp.broadcast_to(null, (len(indices), *null.shape))
    if config.module.num_classes:
      labels = jnp.asarray(work.batch.labels, jnp.int32)[:, None]
    frames = frame_mask = None
    if config.module.frame_prediction:
      # Zeros if no frame is known, so that every extension runs the same program.
      frames = np.zeros((len(indices), *shape), np.float32)
      frame_mask = np.zeros(frames.shape[:2], np.float32)
      if known is not None:
        frames[:, : known.shape[1]] = info.normalize(known, config.latents)
        frame_mask[:, : known.shape[1]] = 1
      frames, frame_mask = jnp.asarray(frames), jnp.asarray(frame_mask)
    low_noise = None
    if low is not None:
      assert config.low_resolution is not None, "a super-resolution stage has a low resolution"
      low = info.normalize(low, config.low_resolution)
      low_noise = noise(f"{config.name} low resolution", low.shape[1:])
    sampled = self._samplers[config.name](
      params,
      noise(config.name),
      Conditioning(
        text=text,
        text_mask=mask,
        labels=labels,
        frames=frames,
        frame_mask=frame_mask,
        low_resolution=low,
      ),
      low_noise=low_noise,
      null_text=null,
    )
    latents = np.array(info.denormalize(jnp.asarray(sampled), config.latents), np.float32)
    if known is not None:
      latents[:, : known.shape[1]] = known
    return latents


@dataclasses.dataclass(kw_only=True)
class _Work:
  """One batch and its intermediate results."""

  batch: Batch
  rows: int
  text: tuple[Any, Any]
  latents: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
  videos: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
  seconds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

  def samples(self) -> list[Sample]:
    return [
      Sample(
        index=int(self.batch.indices[row]),
        prompt=self.batch.prompts[row],
        videos={name: clips[row] for name, clips in self.videos.items()},
        latents={name: np.stack([z[row] for z in parts]) for name, parts in self.latents.items()},
        seconds=self.seconds,
      )
      for row in range(self.rows)
    ]


def stage_size(config: StageConfig, vae: Any) -> tuple[int, int]:
  """(H, W) of a stage's pixels."""
  _, h, w = schema.latents_shape(config.latents)
  return h * vae.spatial_factor, w * vae.spatial_factor
