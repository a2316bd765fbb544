"""The record schema shared by preprocessing and training; records are encoded and parsed only here.

A record is a `tf.train.Example`. Fields:

  id               string       sha256 of content, clip window and captions
  uri              string       source of the media, as in the manifest
  modality         string       'image' | 'video'
  label            int64        class, -1 if there is none
  fps              float32      frame rate of the clip, 0 for an image
  start_seconds    float32      time of the clip's first frame in the source
  crop             int64[4]     top, left, height, width in source pixels
  manifest_crop    float32[4]   only if the manifest row has a crop: it, top, bottom, left, right in fractions
  motion           float32      mean absolute luma change between adjacent frames, in [0, 1]
  captions         string[k]    k >= 1
  caption_weights  float32[k]   relative probability of sampling a caption
  caption_lengths  int64[k]     tokens of each caption
  text_ids         int64[n]     concatenated tokens of all captions, n = sum(caption_lengths)
  text_embedding   bytes        n tokens of all captions, int8 with one step size per 8 channels (data.packed_text)
  latents/TxHxW    bytes        little-endian bfloat16, (t, h, w, c) C order; one field per resolution
  pixels/TxHxW     bytes        uint8 RGB, (T, H, W, 3) C order; in caches for training the tokenizer, without text

Arrays of types that seqio's cache does not support (bfloat16, int8) are bytes in a scalar `string` feature. Encoding
does not need TensorFlow (it runs on Beam workers); the parsers for `tf.data` import it when called.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from data import packed_text

SCHEMA_VERSION = 3
MODALITIES = ("image", "video")
SPLITS = ("train", "validation")
NO_LABEL = -1

_LATENTS = re.compile(r"latents/(\d+)x(\d+)x(\d+)")
_PIXELS = re.compile(r"pixels/(\d+)x(\d+)x(\d+)")
_STRINGS = ("id", "uri", "modality")
_FLOATS = ("fps", "start_seconds", "motion")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """One record in numpy, before encoding or after decoding.

  `latents` maps a field name to (t, h, w, c), `pixels` to uint8 (T, H, W, 3); `text_ids` and `text_embedding` have one
  array per caption, of shapes (n_tokens,) and (n_tokens, E).
  """

  id: str
  uri: str
  modality: str
  latents: Mapping[str, np.ndarray]
  captions: Sequence[str]
  text_ids: Sequence[np.ndarray]
  text_embedding: Sequence[np.ndarray]
  caption_weights: Sequence[float]
  label: int = NO_LABEL
  fps: float = 0.0
  start_seconds: float = 0.0
  crop: tuple[int, int, int, int] = (0, 0, 0, 0)
  manifest_crop: tuple[float, float, float, float] | None = None
  motion: float = 0.0
  pixels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def latents_field(frames: int, height: int, width: int) -> str:
  """Field name of latents of (t, h, w), for example 'latents/3x8x8'."""
  return f"latents/{frames}x{height}x{width}"


def pixels_field(frames: int, height: int, width: int) -> str:
  """Field name of pixels of (T, H, W), for example 'pixels/9x32x32'."""
  return f"pixels/{frames}x{height}x{width}"


def pixels_shape(name: str) -> tuple[int, int, int]:
  """(T, H, W) that a pixels field name states.

  Raises:
    ValueError: if the name is not a pixels field.
  """
  match = _PIXELS.fullmatch(name)
  if not match:
    raise ValueError(f"not a pixels field: got {name!r}, expected 'pixels/<T>x<H>x<W>'")
  return int(match[1]), int(match[2]), int(match[3])


def is_latents_field(name: str) -> bool:
  """Whether a field contains latents."""
  return bool(_LATENTS.fullmatch(name))


def latents_shape(name: str) -> tuple[int, int, int]:
  """(t, h, w) that a latents field name states.

  Raises:
    ValueError: if the name is not a latents field.
  """
  match = _LATENTS.fullmatch(name)
  if not match:
    raise ValueError(f"not a latents field: got {name!r}, expected 'latents/<t>x<h>x<w>'")
  return int(match[1]), int(match[2]), int(match[3])


def seqio_features(arrays: Sequence[str]) -> dict[str, dict[str, Any]]:
  """The `features` entry of seqio's info.<split>.json for records with these latents or pixels fields."""
  features = {name: {"shape": [], "dtype": "string"} for name in _STRINGS}
  features |= {name: {"shape": [], "dtype": "float32"} for name in _FLOATS}
  features |= {
    "label": {"shape": [], "dtype": "int64"},
    "crop": {"shape": [4], "dtype": "int64"},
    "captions": {"shape": [None], "dtype": "string"},
    "caption_weights": {"shape": [None], "dtype": "float32"},
    "caption_lengths": {"shape": [None], "dtype": "int64"},
    "text_ids": {"shape": [None], "dtype": "int64"},
    "text_embedding": {"shape": [], "dtype": "string"},
  }
  for name in arrays:
    (latents_shape if is_latents_field(name) else pixels_shape)(name)
    features[name] = {"shape": [], "dtype": "string"}
  return features


# --- encode and decode, numpy only -------------------------------------------------------------------------------


def encode(record: Record) -> bytes:
  """A record as a serialized `tf.train.Example`; the same record always gives the same bytes.

  Raises:
    ValueError: if a field is invalid; the message names it.
  """
  _check(record)
  example = _example_class()()
  feature = example.features.feature
  for name in _STRINGS:
    feature[name].bytes_list.value.append(getattr(record, name).encode())
  for name in _FLOATS:
    feature[name].float_list.value.append(getattr(record, name))
  feature["label"].int64_list.value.append(record.label)
  feature["crop"].int64_list.value.extend(record.crop)
  if record.manifest_crop is not None:
    feature["manifest_crop"].float_list.value.extend(record.manifest_crop)
  feature["captions"].bytes_list.value.extend(caption.encode() for caption in record.captions)
  feature["caption_weights"].float_list.value.extend(record.caption_weights)
  feature["caption_lengths"].int64_list.value.extend(len(ids) for ids in record.text_ids)
  feature["text_ids"].int64_list.value.extend(int(i) for ids in record.text_ids for i in ids)
  text = b"".join(packed_text.pack(embedding).tobytes() for embedding in record.text_embedding)
  feature["text_embedding"].bytes_list.value.append(text)
  for name, latents in record.latents.items():
    little_endian = np.ascontiguousarray(latents, ml_dtypes.bfloat16).view("<u2")
    feature[name].bytes_list.value.append(little_endian.tobytes())
  for name, pixels in record.pixels.items():
    feature[name].bytes_list.value.append(np.ascontiguousarray(pixels, np.uint8).tobytes())
  return example.SerializeToString(deterministic=True)


def decode(serialized: bytes) -> Record:
  """The record of one serialized Example; latents are bfloat16, text embeddings float32."""
  example = _example_class()()
  example.ParseFromString(serialized)
  feature = example.features.feature
  lengths = list(feature["caption_lengths"].int64_list.value)
  tokens = sum(lengths)
  ends = np.cumsum(lengths)[:-1]
  text = np.zeros((0, 0), np.float32)
  if tokens:
    packed = np.frombuffer(feature["text_embedding"].bytes_list.value[0], np.uint8)
    text = packed_text.unpack(packed.reshape(tokens, -1))
  latents, pixels = {}, {}
  for name in sorted(feature):
    if _PIXELS.fullmatch(name):
      raw = np.frombuffer(feature[name].bytes_list.value[0], np.uint8)
      pixels[name] = raw.reshape(*pixels_shape(name), 3)
    if _LATENTS.fullmatch(name):
      raw = np.frombuffer(feature[name].bytes_list.value[0], "<u2").astype(np.uint16)
      latents[name] = raw.view(ml_dtypes.bfloat16).reshape(*latents_shape(name), -1)
  return Record(
    **{name: feature[name].bytes_list.value[0].decode() for name in _STRINGS},
    **{name: feature[name].float_list.value[0] for name in _FLOATS},
    label=feature["label"].int64_list.value[0],
    crop=tuple(feature["crop"].int64_list.value),
    manifest_crop=_crop_of(feature["manifest_crop"].float_list.value),
    captions=[caption.decode() for caption in feature["captions"].bytes_list.value],
    caption_weights=list(feature["caption_weights"].float_list.value),
    text_ids=np.split(np.array(feature["text_ids"].int64_list.value, np.int32), ends),
    text_embedding=np.split(text, ends),
    latents=latents,
    pixels=pixels,
  )


def _crop_of(values: Sequence[float]) -> tuple[float, float, float, float] | None:
  """The crop of a manifest row, whose fractions have six digits; None without."""
  if not values:
    return None
  top, bottom, left, right = (round(value, 6) for value in values)
  return top, bottom, left, right


def _check(record: Record) -> None:
  if record.modality not in MODALITIES:
    raise ValueError(f"modality: got {record.modality!r}, expected one of {MODALITIES}")
  if not record.captions:
    raise ValueError("captions: got none, expected at least one (an empty string is the null text)")
  for name in ("caption_weights", "text_ids", "text_embedding"):
    if len(getattr(record, name)) != len(record.captions):
      raise ValueError(
        f"{name}: got {len(getattr(record, name))} entries for {len(record.captions)} captions"
      )
  for ids, embedding in zip(record.text_ids, record.text_embedding):
    if np.ndim(embedding) != 2 or len(ids) != len(embedding):
      raise ValueError(
        f"text_embedding: got shape {np.shape(embedding)} for {len(ids)} token ids, expected (n, E)"
      )
  if len(record.crop) != 4:
    raise ValueError(f"crop: got {record.crop}, expected (top, left, height, width)")
  if not record.latents and not record.pixels:
    raise ValueError(
      "got neither latents nor pixels, expected at least one 'latents/<t>x<h>x<w>' or 'pixels/<T>x<H>x<W>'"
    )
  for name, pixels in record.pixels.items():
    if np.shape(pixels) != (*pixels_shape(name), 3) or np.asarray(pixels).dtype != np.uint8:
      raise ValueError(
        f"{name}: got {np.asarray(pixels).dtype} {np.shape(pixels)}, expected uint8 {pixels_shape(name)} + (3,)"
      )
  for name, latents in record.latents.items():
    if np.ndim(latents) != 4 or np.shape(latents)[:3] != latents_shape(name):
      raise ValueError(
        f"{name}: got shape {np.shape(latents)}, expected {latents_shape(name)} + (c,)"
      )


_EXAMPLE_PROTO = """
  name: "walt_t5x/records/example.proto"  package: "walt_t5x.records"  syntax: "proto3"
  message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
  message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
  message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
  message_type {
    name: "Feature"
    oneof_decl { name: "kind" }
    field { name: "bytes_list" number: 1 type_name: "BytesList" label: LABEL_OPTIONAL oneof_index: 0 }
    field { name: "float_list" number: 2 type_name: "FloatList" label: LABEL_OPTIONAL oneof_index: 0 }
    field { name: "int64_list" number: 3 type_name: "Int64List" label: LABEL_OPTIONAL oneof_index: 0 }
  }
  message_type {
    name: "Features"
    nested_type {
      name: "FeatureEntry"
      options { map_entry: true }
      field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
      field { name: "value" number: 2 type_name: "Feature" label: LABEL_OPTIONAL }
    }
    field { name: "feature" number: 1 type_name: "FeatureEntry" label: LABEL_REPEATED }
  }
  message_type { name: "Example" field { name: "features" number: 1 type_name: "Features" label: LABEL_OPTIONAL } }
"""


@functools.cache
def _example_class() -> type:
  """`tf.train.Example`, in a separate pool to avoid conflicts with TensorFlow's."""
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

  pool = descriptor_pool.DescriptorPool()
  pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("walt_t5x.records.Example"))


# --- parse inside tf.data ----------------------------------------------------------------------------------------


def parse_records(serialized: Any, fields: Sequence[str]) -> dict[str, Any]:
  """Features of n records, parsed together: tensors [n, ...], ragged if the length of the field varies.

  Args:
    serialized: strings [n].
    fields: names of features; other features of a record are ignored.
  """
  import tensorflow as tf

  features = seqio_features([name for name in fields if "/" in name])
  return tf.io.parse_example(
    serialized,
    {
      name: tf.io.RaggedFeature(features[name]["dtype"])
      if features[name]["shape"] == [None]
      else tf.io.FixedLenFeature(features[name]["shape"], features[name]["dtype"])
      for name in fields
    },
  )


def parse_latents(example: Mapping[str, Any], name: str, shape: Sequence[int]) -> Any:
  """bfloat16 tensor (t, h, w, c) of one latents field of a record that seqio has read, or (n, t, h, w, c) of n.

  Args:
    example: features of one record, tensors; or of n records (`parse_records`).
    name: latents field.
    shape: (t, h, w, c); the channels come from the provenance.

  Raises:
    KeyError: if the record has no such field.
    ValueError: if the shape differs from the one in the name.
  """
  import tensorflow as tf

  if tuple(shape[:3]) != latents_shape(name) or len(shape) != 4:
    raise ValueError(f"{name}: got shape {tuple(shape)}, expected {latents_shape(name)} + (c,)")
  return _decoded(example, name, tf.bfloat16, shape)


def parse_pixels(example: Mapping[str, Any], name: str) -> Any:
  """uint8 tensor (T, H, W, 3) of one pixels field of a record that seqio has read, or (n, T, H, W, 3) of n.

  Raises:
    KeyError: if the record has no such field.
  """
  import tensorflow as tf

  return _decoded(example, name, tf.uint8, (*pixels_shape(name), 3))


def _decoded(example: Mapping[str, Any], name: str, dtype: Any, shape: Sequence[int]) -> Any:
  import tensorflow as tf

  if name not in example:
    kind = name.partition("/")[0]
    known = sorted(field for field in example if field.startswith(f"{kind}/"))
    raise KeyError(f"record has no field {name!r}; its {kind} fields are {known}")
  records = (-1,) if example[name].shape.rank else ()
  return tf.reshape(tf.io.decode_raw(example[name], dtype), (*records, *shape))


def draw_captions(weights: Any, *, seed: Any) -> Any:
  """Index of one caption for each of n records, sampled by `caption_weights`: int64 [n].

  Args:
    weights: ragged float32 [n, captions].
    seed: int tensor of shape (2,), as for `tf.random.stateless_uniform`.
  """
  import tensorflow as tf

  odds = tf.math.log(weights.to_tensor())
  return tf.random.stateless_categorical(odds, 1, seed, dtype=tf.int64)[:, 0]


def packed_captions(
  examples: Mapping[str, Any], *, index: Any, embedding_dim: int, length: int
) -> tuple[Any, Any]:
  """One packed caption of each of n records, truncated to `length` tokens: strings [n], and token counts int64 [n].

  Args:
    examples: `caption_lengths` and `text_embedding` of n records (`parse_records`).
    index: which caption, int64 [n]; from `draw_captions`.
    embedding_dim: E.
    length: maximum number of tokens.
  """
  import tensorflow as tf

  lengths = examples["caption_lengths"].to_tensor()
  count = tf.gather(lengths, index, batch_dims=1)
  start = tf.gather(tf.cumsum(lengths, axis=1), index, batch_dims=1) - count
  count = tf.minimum(count, length)
  size = packed_text.token_bytes(embedding_dim)
  return tf.strings.substr(examples["text_embedding"], start * size, count * size), count
