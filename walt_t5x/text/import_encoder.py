"""Imports T5 v1.1 encoder weights, from Hugging Face safetensors or a T5X checkpoint, into a text encoder folder.

  python -m walt_t5x.text.import_encoder --source google_t5-v1_1-xl/ --output encoders/t5_xl
  python -m walt_t5x.text.import_encoder --source t5_1_1_xl/checkpoint_1000000 \\
    --vocabulary cc_all.32000/sentencepiece.model --output encoders/t5_xl

The source is local: a model folder, the index of a sharded checkpoint, a .safetensors file, or a checkpoint_<step>
folder of T5X. Only the encoder is written, as float32; one tensor is in memory at a time.
"""

import math
import pathlib
import sys

from walt_t5x.config import programs, usage
from walt_t5x.files import local_folders, storage
from walt_t5x.text.config import CONFIG_FILE, VOCABULARY_FILE, T5Config


def main(argv: list[str] | None = None) -> int:
  """Runs the program."""
  parser = programs.parser("walt_t5x.text.import_encoder", __doc__)
  parser.add_argument(
    "--source",
    required=True,
    type=usage.local_path,
    help="folder, .safetensors, model.safetensors.index.json, or a T5X checkpoint_<step>",
  )
  parser.add_argument("--output", required=True, help="text encoder folder to write")
  parser.add_argument(
    "--vocabulary", help="T5's spiece.model (default: spiece.model next to the source)"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace an existing encoder")
  args = parser.parse_args(argv)
  source_path, output = args.source, args.output
  folder = source_path if source_path.is_dir() else source_path.parent
  if storage.exists(storage.join(output, CONFIG_FILE)) and not args.overwrite:
    parser.error(f"{output} already contains an encoder; pass --overwrite to replace it.")
  if storage.is_local(output) and pathlib.Path(output).resolve() == folder.resolve():
    parser.error("--output is the folder of the source; choose another folder.")

  from walt_t5x.text.encoder import encoder_fingerprint, save_encoder
  from walt_t5x.text.import_weights import EncoderWeights, T5XSource, infer_config
  from walt_t5x.text.model import parameter_shapes
  from walt_t5x.text.safetensors_files import SafetensorsSource
  from walt_t5x.text.vocabulary import Vocabulary

  is_t5x = source_path.is_dir() and any(source_path.glob("target.*"))
  source = T5XSource(source_path) if is_t5x else SafetensorsSource(source_path)
  stored_config = folder / CONFIG_FILE
  config = T5Config.from_json(stored_config) if stored_config.is_file() else infer_config(source)
  weights = EncoderWeights(source, config)
  vocabulary = Vocabulary.load(args.vocabulary or folder / VOCABULARY_FILE)
  if len(vocabulary) > config.vocab_size:
    parser.error(
      f"the vocabulary has {len(vocabulary)} pieces, the embedding table {config.vocab_size} rows; "
      "pass the --vocabulary of these weights."
    )
  save_encoder(output, config=config, weights=weights, vocabulary=vocabulary)

  shapes = parameter_shapes(config).values()
  with local_folders.read_locally(output) as copy:
    written = EncoderWeights(SafetensorsSource(copy), config)
    print(f"config       {config}")
    print(f"tensors      {len(written)} of {len(source.names)} in the source")
    print(f"parameters   {sum(math.prod(shape) for shape in shapes):,}")
    print(f"vocabulary   {len(vocabulary)} pieces")
    print(f"fingerprint  {encoder_fingerprint(config, written, vocabulary)}")
  print(f"written      {output}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
