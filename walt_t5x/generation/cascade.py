"""The cascade: text -> base latents -> super-resolution latents -> pixels, extended by rounds from its last frames.

One round makes 1 + k f_t frames. Every further round is given the last 1 + f_t frames of the previous one, encoded
again by the causal tokenizer (2 latent frames), and adds the rest: 17 + 12 + 12 + ... frames. Each stage is given its
own last frames, so a stage runs all its rounds before the next one starts.

Assumption: the given latent frames replace those that the network returns for them, once, after the last step. As the
tokenizer is causal, the first frames of a clip are then the tokenizer's reconstruction of the given frames.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.generation.given_media import GivenMedia
from walt_t5x.generation.noise import noise_for
from walt_t5x.generation.pixel_codec import PixelCodec
from walt_t5x.generation.stage import Stage, StageInfo
from walt_t5x.generation.stage_sampler import StageSampler
from walt_t5x.text.encoder import TextEncoder

# (stage, round) after each round of a stage of a batch.
ProgressFn = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Clips that are generated together.

  Attributes:
    indices: index of each sample; determines its noise.
    prompts: one per clip; empty strings if the stages read no text.
    labels: one per clip, or empty if the stages have no classes.
    given: what each clip starts from; all None, all images or all videos.
  """

  indices: Sequence[int]
  prompts: Sequence[str]
  labels: Sequence[int] = ()
  given: Sequence[GivenMedia | None] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One generated clip.

  Attributes:
    index: its number.
    prompt: its prompt.
    videos: stage name -> frames [T, H, W, 3] uint8, base first.
    latents: stage name -> latents of the tokenizer [rounds, t, h, w, c].
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
    codec: the tokenizer.
    batch_size: clips per batch.
    mesh: devices to sample on, see `mesh_for`.
    load: reads a stage's weights.
    one_at_a_time: hold only one stage's weights and run it over all batches of a call to `run`.
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
    load: Callable[[StageInfo], Stage] = Stage.load,
    one_at_a_time: bool = False,
  ):
    self.infos = list(infos)
    self.codec = codec
    self.text_encoder = text_encoder
    self.text_length = text_length
    self.batch_size = batch_size
    self.one_at_a_time = one_at_a_time
    self.fingerprints: dict[str, str] = {}
    self._load = load
    self._samplers = {i.config.name: StageSampler(i.config, mesh=mesh) for i in self.infos}
    self._loaded: dict[str, Any] = {}

  def run(
    self,
    batches: Sequence[Batch],
    *,
    seed: int,
    rounds: int = 1,
    stages: int | None = None,
    decoded_given: bool = False,
    progress: ProgressFn = lambda stage, round: None,
  ) -> Iterator[list[Sample]]:
    """Yields the samples batch by batch.

    A short batch is padded with its last clip, so every batch runs the same compiled programs.

    Args:
      batches: at most `batch_size` clips each.
      seed: seed of the noise.
      rounds: 1 makes the number of frames that the stages were trained on; each further round adds frames.
      stages: number of stages to run, from the base; all by default.
      decoded_given: start with the tokenizer's reconstruction of a clip's last frames instead of the entire clip.
      progress: called after each round of each stage of each batch.
    """
    groups = [list(batches)] if self.one_at_a_time else [[batch] for batch in batches]
    for group in groups:
      work = [_Work(batch=self._filled(batch), rows=len(batch.indices)) for batch in group]
      for one in work:
        one.text = self.encode_text(one.batch.prompts)
      for info, below in zip(self.infos[:stages], [None, *self.infos]):
        name = info.config.name
        params = self._weights(info)
        for one in work:
          self._run_stage(
            info,
            below,
            params,
            one,
            seed=seed,
            rounds=rounds,
            decoded_given=decoded_given,
            progress=progress,
          )
        del params
        if self.one_at_a_time:
          self._loaded.pop(name)
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
      seed: seed of the noise.
      first_index: index of the first clip.

    Raises:
      ValueError: no super-resolution stage has this name.
    """
    names = [info.config.name for info in self.infos]
    if name not in names[1:]:
      raise ValueError(f"no super-resolution stage {name!r}: expected one of {names[1:]}")
    rows, at = len(low), names.index(name)
    info, below = self.infos[at], self.infos[at - 1]
    indices = list(range(first_index, first_index + rows))
    batch = self._filled(Batch(indices=indices, prompts=list(prompts)))
    work = _Work(batch=batch, rows=rows, text=self.encode_text(batch.prompts))
    fill = np.repeat(low[-1:], self.batch_size - rows, axis=0)
    work.latents[below.config.name] = [np.concatenate([low, fill])]
    weights = self._weights(info)
    self._run_stage(info, below, weights, work, seed=seed, rounds=1)
    return np.stack(work.videos[name][:rows])

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

  def _filled(self, batch: Batch) -> Batch:
    missing = self.batch_size - len(batch.indices)
    if missing < 0:
      raise ValueError(
        f"got a batch of {len(batch.indices)} clips, expected at most batch_size={self.batch_size}"
      )
    fields = {f.name: list(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return Batch(**{name: [*rows, *rows[-1:] * missing] for name, rows in fields.items()})

  def _weights(self, info: StageInfo) -> Any:
    name = info.config.name
    if name not in self._loaded:
      stage = self._load(info)
      self.fingerprints[name] = stage.fingerprint
      self._loaded[name] = self._samplers[name].place(stage.params)
    return self._loaded[name]

  def _run_stage(
    self,
    info: StageInfo,
    below: StageInfo | None,
    params: Any,
    work: "_Work",
    *,
    seed: int,
    rounds: int,
    decoded_given: bool = False,
    progress: ProgressFn = lambda stage, round: None,
  ) -> None:
    """Runs all rounds of one stage for one batch."""
    name = info.config.name
    media = [medium for medium in work.batch.given if medium is not None]
    given = _at_size(media, stage_size(info, self.codec.vae))
    tail = None
    if given:
      tail = np.stack([clip[-medium.conditioned :] for clip, medium in zip(given, media)])
    # A continued clip starts with the given clip; one from an image starts with the image's reconstruction.
    entire_clip = tail is not None and tail.shape[1] > 1 and not decoded_given
    videos = []
    latents, seconds = [], {"sample": 0.0, "decode": 0.0, "encode": 0.0}
    for round in range(rounds):
      low = None if below is None else work.latents[below.config.name][round]
      started = time.monotonic()
      known = None if tail is None else self.codec.encode(tail)
      encoded = time.monotonic()
      sampled = self._sample(info, params, work, given=known, low=low, seed=seed, round=round)
      done = time.monotonic()
      pixels = self.codec.decode(sampled)
      seconds["encode"] += encoded - started
      seconds["sample"] += done - encoded
      seconds["decode"] += time.monotonic() - done
      shown = tail.shape[1] if tail is not None and (videos or entire_clip) else 0
      videos.append(pixels[:, shown:])
      latents.append(sampled)
      tail = pixels[:, -(1 + self.codec.vae.temporal_factor) :]
      progress(name, round)
    work.latents[name], work.seconds[name] = latents, seconds
    made = np.concatenate(videos, axis=1)
    # Continued clips may differ in length.
    work.videos[name] = (
      [np.concatenate([clip, new]) for clip, new in zip(given, made)] if entire_clip else list(made)
    )

  def _sample(
    self, info: StageInfo, params: Any, work: "_Work", *, given, low, seed: int, round: int
  ) -> np.ndarray:
    """Latents of the tokenizer [B, t, h, w, c] for one round."""
    config, shape = info.config, info.latents_shape
    indices = np.asarray(work.batch.indices)
    text, mask = work.text if config.module.text_dim else (None, None)
    null = labels = None
    if text is not None:
      null = jnp.asarray(info.provenance.null_embedding)
      null = jnp.broadcast_to(null, (len(indices), *null.shape))
    if config.module.num_classes:
      labels = jnp.asarray(work.batch.labels, jnp.int32)[:, None]
    frames = frame_mask = None
    if config.module.frame_prediction:
      # Zeros if nothing is given, so that every round runs the same program.
      frames = np.zeros((len(indices), *shape), np.float32)
      frame_mask = np.zeros(frames.shape[:2], np.float32)
      if given is not None:
        frames[:, : given.shape[1]] = info.normalize(given, config.latents)
        frame_mask[:, : given.shape[1]] = 1
      frames, frame_mask = jnp.asarray(frames), jnp.asarray(frame_mask)
    low_noise = None
    if low is not None:
      assert config.low_resolution is not None, "a super-resolution stage has a low resolution"
      low = info.normalize(low, config.low_resolution)
      low_noise = noise_for(seed, f"{config.name} low resolution", indices, shape, round=round)
    sampled = self._samplers[config.name](
      params,
      noise_for(seed, config.name, indices, shape, round=round),
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
    if given is not None:
      latents[:, : given.shape[1]] = given
    return latents


@dataclasses.dataclass(kw_only=True)
class _Work:
  """One batch and its intermediate results."""

  batch: Batch
  rows: int
  text: tuple[Any, Any] = (None, None)
  latents: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
  videos: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
  seconds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

  def samples(self) -> list[Sample]:
    return [
      Sample(
        index=int(self.batch.indices[row]),
        prompt=self.batch.prompts[row],
        videos={name: clips[row] for name, clips in self.videos.items()},
        latents={name: np.stack([r[row] for r in rounds]) for name, rounds in self.latents.items()},
        seconds=self.seconds,
      )
      for row in range(self.rows)
    ]


def stage_size(info_or_config: Any, vae: Any) -> tuple[int, int]:
  """(H, W) of a stage's pixels."""
  from data import schema

  config = getattr(info_or_config, "config", info_or_config)
  _, h, w = schema.latents_shape(config.latents)
  return h * vae.spatial_factor, w * vae.spatial_factor


def _at_size(given: Sequence[GivenMedia], size: tuple[int, int]) -> list[np.ndarray]:
  """[T, H, W, 3] uint8 of each clip at (H, W)."""
  # Clips of one request share their given media.
  made = {id(media): media.at(size) for media in given}
  return [made[id(media)] for media in given]
