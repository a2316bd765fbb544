"""Sizes of the T5 v1.1 encoder, its reserved ids and files, and Hugging Face's `config.json`."""

import dataclasses
import json
import pathlib
from typing import Any

from walt_t5x.files import storage

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "spiece.model"

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

# Fields that are the same for all sizes of T5 v1.1; `config.json` may omit them but may not contradict them.
_FIXED_FIELDS = {
  "model_type": "t5",
  "feed_forward_proj": "gated-gelu",
  "layer_norm_epsilon": 1e-6,
  "pad_token_id": PAD_ID,
  "eos_token_id": EOS_ID,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Sizes of one T5 v1.1 encoder; field names are those of Hugging Face's `config.json`.

  Args:
    vocab_size: rows of the embedding table (at least the number of pieces of the vocabulary).
    d_model: width of the residual stream and of the text embedding.
    d_kv: width of one attention head; num_heads * d_kv need not equal d_model.
    d_ff: width of each of the two branches of the gated feed-forward layer.
    relative_attention_num_buckets: buckets of the relative position table, a multiple of 4.
    relative_attention_max_distance: distance in tokens from which all positions share the last bucket.

  Raises:
    ValueError: if a size is not positive, or the buckets cannot be split by sign.
  """

  vocab_size: int = 32128
  d_model: int
  d_kv: int = 64
  d_ff: int
  num_heads: int
  num_layers: int
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"T5Config.{name}: got {value!r}, expected a positive integer.")
    buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
    if buckets % 4 or distance <= buckets // 4:
      raise ValueError(
        f"Relative positions: got {buckets} buckets up to distance {distance}, expected a multiple "
        "of 4 (half for each sign, half of those exact) and a distance above a quarter of it; set "
        "relative_attention_num_buckets and relative_attention_max_distance (T5: 32 and 128)."
      )

  @classmethod
  def from_json(cls, path: str | pathlib.Path) -> "T5Config":
    """Reads a Hugging Face `config.json`; raises ValueError if it does not describe a T5 v1.1 encoder."""
    stored = storage.read_json(path)
    for name, expected in _FIXED_FIELDS.items():
      if stored.get(name, expected) != expected:
        raise ValueError(
          f"{path}: {name} is {stored[name]!r}, expected {expected!r}. Only T5 v1.1 encoders "
          "(google/t5-v1_1-*, google/flan-t5-*) are supported; point to such a checkpoint."
        )
    if "feed_forward_proj" not in stored:
      raise ValueError(
        f"{path}: no feed_forward_proj, so this is T5 v1.0 (ReLU); expected 'gated-gelu'. "
        "Point to a T5 v1.1 checkpoint (google/t5-v1_1-*)."
      )
    # The defaults of this class are Hugging Face's. Older checkpoints have no maximum distance.
    fields = dataclasses.fields(cls)
    required = {f.name for f in fields if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(stored)):
      raise ValueError(f"{path}: fields {missing} are missing; add them as in T5's config.json.")
    return cls(**{f.name: stored[f.name] for f in fields if f.name in stored})

  def to_json(self) -> str:
    """Returns the text of a `config.json` that Hugging Face's `T5EncoderModel` reads."""
    fields: dict[str, Any] = {
      "architectures": ["T5EncoderModel"],
      **_FIXED_FIELDS,
      **dataclasses.asdict(self),
      "decoder_start_token_id": 0,
      "dropout_rate": 0.0,
      "initializer_factor": 1.0,
      "is_encoder_decoder": False,
      "tie_word_embeddings": False,
      "torch_dtype": "float32",
      "use_cache": False,
    }
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


SMALL = T5Config(d_model=512, d_ff=1024, num_heads=6, num_layers=8)
BASE = T5Config(d_model=768, d_ff=2048, num_heads=12, num_layers=12)
LARGE = T5Config(d_model=1024, d_ff=2816, num_heads=16, num_layers=24)
XL = T5Config(d_model=2048, d_ff=5120, num_heads=32, num_layers=24)
XXL = T5Config(d_model=4096, d_ff=10240, num_heads=64, num_layers=24)
# Not a published size: for tests and the CPU quickstart, where it is randomly initialized.
TINY = T5Config(vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2)

PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE, "xl": XL, "xxl": XXL}
