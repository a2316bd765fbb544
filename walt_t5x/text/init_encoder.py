"""Creates a randomly initialized T5 text encoder for tests: no download, no trained weights.

  python -m walt_t5x.text.init_encoder --captions manifest.jsonl --output DIR --size tiny

The vocabulary is trained on the captions of the manifest. The weights are random, so embeddings
distinguish words but do not represent their meaning.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterator


def read_captions(path: str | pathlib.Path) -> Iterator[str]:
  """Yields every caption of a manifest (JSONL rows with "captions": [...] or "caption": str).

  Raises:
    ValueError: if a row is not JSON or its captions are not strings.
  """
  with open(path, encoding="utf-8") as lines:
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


def main(argv: list[str] | None = None) -> int:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    prog="python -m walt_t5x.text.init_encoder",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--captions", required=True, help="manifest.jsonl to train the vocabulary on")
  parser.add_argument("--output", required=True, help="text encoder folder to write")
  parser.add_argument(
    "--size", default="tiny", choices=["tiny", "small", "base", "large", "xl", "xxl"]
  )
  parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
  parser.add_argument("--overwrite", action="store_true", help="replace an existing encoder")
  args = parser.parse_args(argv)
  output = pathlib.Path(args.output)
  if (output / "config.json").exists() and not args.overwrite:
    parser.error(f"{output} already contains an encoder; pass --overwrite to replace it.")
  if args.seed < 0:
    parser.error(f"--seed: got {args.seed}, expected 0 or more.")

  import dataclasses

  from walt_t5x.text.config import PRESETS
  from walt_t5x.text.encoder import save_encoder
  from walt_t5x.text.fingerprint import encoder_fingerprint
  from walt_t5x.text.random_weights import random_weights
  from walt_t5x.text.vocabulary import train_vocabulary

  captions = list(read_captions(args.captions))
  vocabulary = train_vocabulary(captions)
  config = dataclasses.replace(PRESETS[args.size], vocab_size=len(vocabulary))
  weights = random_weights(config, args.seed)
  save_encoder(output, config=config, weights=weights, vocabulary=vocabulary)

  words = {word for caption in captions for word in re.findall(r"\w+", caption)}
  whole = sum(len(vocabulary.encode(word, 512)) == 2 for word in words)
  print("RANDOM WEIGHTS: this encoder is untrained. Use it for tests, not for results.")
  print(f"captions     {len(captions)}, {len(words)} distinct words, {whole} of them one piece")
  print(f"vocabulary   {len(vocabulary)} pieces (pad 0, eos 1, unk 2)")
  print(f"parameters   {sum(w.size for w in weights.values()):,} (size {args.size})")
  print(f"fingerprint  {encoder_fingerprint(config, weights, vocabulary)}")
  print(f"written      {output}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
