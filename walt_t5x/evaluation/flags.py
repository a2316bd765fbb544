"""Flags of an evaluation: what is scored, by which protocol, and where the scores go. Imports nothing heavy."""

import argparse

from walt_t5x.files.paths import as_path
from walt_t5x.metrics import protocols
from walt_t5x.metrics.protocols.by_prompt import BY_PROMPT
from walt_t5x.metrics.protocols.protocol import Geometry

PROTOCOLS = (*BY_PROMPT, *protocols.PROTOCOLS)
RENAMED_PROTOCOLS = {"caption_obedience": "caption_accuracy"}
# For each network, the program that makes its file.
NETWORKS = {
  "i3d": "metrics.import_weights",
  "inception": "metrics.import_weights",
  "c3d": "metrics.import_weights",
  "lpips": "vae.import_lpips",
  "shapes": "train_surrogate",
}


def height_and_width(text: str) -> tuple[int, int]:
  """Parses HEIGHTxWIDTH."""
  height, _, width = text.partition("x")
  if not (height.isdigit() and width.isdigit()):
    raise argparse.ArgumentTypeError(f"got {text}, expected HEIGHTxWIDTH, such as 128x128")
  return int(height), int(width)


def protocol_name(name: str) -> str:
  """Returns the name of a protocol; an old name raises argparse.ArgumentTypeError, which states the new one."""
  if name in RENAMED_PROTOCOLS:
    raise argparse.ArgumentTypeError(f"{name} is now {RENAMED_PROTOCOLS[name]}")
  return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags for what is scored and where the scores are written; the Beam job has them too."""
  scored = parser.add_argument_group("what is scored")
  scored.add_argument("--samples", required=True, help="folder, manifest, or --output of generate")
  scored.add_argument("--reference", help="folder, manifest, or an .npz with mu and sigma")
  scored.add_argument("--stage", help="stage of a generated cascade (default: the last)")
  scored.add_argument("--reference_split", help="split of a reference manifest")
  weights = parser.add_argument_group("weights of the networks that protocols need")
  for network, program in NETWORKS.items():
    weights.add_argument(f"--{network}_weights", help=f"from `python -m walt_t5x.{program}`")
  changes = parser.add_argument_group("changes to the protocol (its hash changes too)")
  changes.add_argument("--frames", type=int, help="frames per clip")
  changes.add_argument(
    "--size", type=height_and_width, help="HEIGHTxWIDTH at which clips are scored"
  )
  changes.add_argument("--fps", type=float, help="frames per second at which media files are read")
  changes.add_argument(
    "--geometry",
    choices=[str(g) for g in Geometry],
    help="'crop' cuts the center of frames of another shape, like preprocessing; 'stretch' does not keep their shape",
  )
  changes.add_argument("--count", type=int, help="samples per fold")
  changes.add_argument("--reference_count", type=int, help="reference clips per fold")
  changes.add_argument("--folds", type=int)
  changes.add_argument("--scores", help="only these, separated by commas")
  work = parser.add_argument_group("the work and its output")
  work.add_argument("--batch_size", type=int, default=8, help="clips per forward pass")
  work.add_argument(
    "--parts_dir",
    type=as_path,
    help="folder for the statistics of parts; the same command resumes from them",
  )
  work.add_argument("--clips_per_part", type=int, default=500, help="clips per stored part")
  work.add_argument(
    "--output",
    type=as_path,
    help="JSON (default: scores_PROTOCOL.json in --samples if `generate` or `reconstruct` wrote it, else here)",
  )
  work.add_argument("--log_dir", help="TensorBoard folder for the scores")
  work.add_argument("--step", type=int, help="training step of the samples, for TensorBoard")
