"""Creates a randomly initialized T5 text encoder for tests: no download, no trained weights.

  python -m walt_t5x.text.init_encoder --captions manifest.jsonl --output DIR --size tiny

The vocabulary is trained on the captions of the manifest. The weights are random, so embeddings
distinguish words but do not represent their meaning.
"""

import dataclasses
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator

import numpy as np

from walt_t5x.config import programs
from walt_t5x.files import storage
from walt_t5x.text.config import CONFIG_FILE, PRESETS, T5Config

# Scale of what each sub-layer adds to the residual stream. At 1 (T5X's initialization) the four
# sub-layers of the tiny size dominate the token; at 0 the embedding ignores word order.
BRANCH_GAIN = 0.5
# Standard deviation of the relative position table: each head mostly attends to one or two
# distances, so that the embedding of a noun depends on its adjective.
POSITION_GAIN = 3.0


def read_captions(path: storage.PathLike) -> Iterator[str]:
  """Yields every caption of a manifest (JSONL rows with "captions" or "caption"), else raises ValueError."""
  with storage.open_text(os.fspath(path)) as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f"{path}:{number}: not JSON ({error}); expected one JSON object per line."
        ) from error
      captions = row.get("captions", row.get("caption", []))
      captions = [captions] if isinstance(captions, str) else captions
      if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{path}:{number}: got captions {captions!r}, expected strings.")
      yield from captions


def random_weights(config: T5Config, seed: int) -> dict[str, np.ndarray]:
  """Draws parameters that keep the words of a caption distinguishable, by flat T5X name, float32.

  Embedding rows are N(0, 1), kernels N(0, 1/fan_in), norms 1. Kernels that write to the residual
  stream are scaled by BRANCH_GAIN / sqrt(num_layers), and queries by d_kv^-1/2, because T5 does not
  scale its logits. A tensor depends only on the seed, its name and its shape.

  Assumption: the paper uses trained weights and has no random encoder.
  """
  from walt_t5x.text.model import parameter_shapes

  weights = {}
  for name, shape in parameter_shapes(config).items():
    if name.endswith("scale"):
      weights[name] = np.ones(shape, np.float32)
      continue
    if name.endswith("embedding"):
      gain = POSITION_GAIN if "relpos_bias" in name else 1.0
    else:
      gain = shape[0] ** -0.5
      if "/query/" in name:
        gain *= config.d_kv**-0.5
      elif "/out/" in name or "/wo/" in name:
        gain *= BRANCH_GAIN * config.num_layers**-0.5
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weights[name] = generator.standard_normal(shape, np.float32) * np.float32(gain)
  return weights


def main(argv: list[str] | None = None) -> int:
  """Runs the program."""
  parser = programs.parser("walt_t5x.text.init_encoder", __doc__)
  parser.add_argument("--captions", required=True, help="manifest.jsonl to train the vocabulary on")
  parser.add_argument("--output", required=True, help="text encoder folder to write")
  parser.add_argument("--size", default="tiny", choices=list(PRESETS))
  parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
  parser.add_argument("--overwrite", action="store_true", help="replace an existing encoder")
  args = parser.parse_args(argv)
  output = args.output
  if storage.exists(storage.join(output, CONFIG_FILE)) and not args.overwrite:
    parser.error(f"{output} already contains an encoder; pass --overwrite to replace it.")
  if args.seed < 0:
    parser.error(f"--seed: got {args.seed}, expected 0 or more.")

  from walt_t5x.text.encoder import encoder_fingerprint, save_encoder
  from walt_t5x.text.vocabulary import train_vocabulary

  captions = list(read_captions(args.captions))
  vocabulary = train_vocabulary(captions)
  config = dataclasses.replace(PRESETS[args.size], vocab_size=len(vocabulary))
  weights = random_weights(config, args.seed)
  save_encoder(output, config=config, weights=weights, vocabulary=vocabulary)

  words = {word for caption in captions for word in re.findall(r"\w+", caption)}
  complete = sum(len(vocabulary.encode(word, 512)) == 2 for word in words)
  print("RANDOM WEIGHTS: this encoder is untrained. Use it for tests, not for results.")
  print(f"captions     {len(captions)}, {len(words)} distinct words, {complete} of them one piece")
  print(f"vocabulary   {len(vocabulary)} pieces (pad 0, eos 1, unk 2)")
  print(f"parameters   {sum(w.size for w in weights.values()):,} (size {args.size})")
  print(f"fingerprint  {encoder_fingerprint(config, weights, vocabulary)}")
  print(f"written      {output}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
