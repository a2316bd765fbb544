"""Scores a folder of generated samples by a named protocol.

  python -m walt_t5x.evaluate --protocol=caption_accuracy --samples=samples
  python -m walt_t5x.evaluate --protocol=fvd --samples=samples --reference=real --i3d_weights=i3d.safetensors

Protocols (docs/evaluation.md specifies each):
  caption_accuracy         shapes vocabulary: does a pixel classifier find color, shape and direction of the prompt?
  text_alignment           cosine similarity of frames and prompt by a CLIP in a local folder (--clip_weights)
  fvd                      any two folders, one 16-frame clip of every file
  ucf101_class_conditional FVD and IS           ucf101_zero_shot  FVD and IS of text to video
  ucf101_stylegan_v        FVD as in StyleGAN-V, at 256 x 256
  k600_frame_prediction    FVD                  imagenet256       FID and IS
  tokenizer                rFVD, PSNR, SSIM, LPIPS of the output of `walt_t5x.reconstruct`
  motion                   how much clips change, and how steadily; needs no weights and no reference
  shapes_fvd               like fvd at 9 frames, with a surrogate network that trains in a minute

Samples and references are folders of media at any depth, .jsonl manifests, or output folders of `generate`; for FID
also an .npz with mu and sigma. Prints a table with the protocol's hash next to each score, then the same as one line
of JSON; writes it next to the samples if `generate` or `reconstruct` made them, else to the current folder, and, with
--log_dir, TensorBoard events through CLU. With --parts_dir an
interrupted evaluation resumes, and several processes can share one: each with its --process_index and
--process_count; the same command without them then computes the scores.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.evaluation.flags import PROTOCOLS, add_arguments, protocol_name
from walt_t5x.files.paths import as_path
from walt_t5x.metrics.protocols.by_prompt import BY_PROMPT, CAPTION_ACCURACY


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.evaluate", __doc__)
  parser.add_argument("--protocol", required=True, type=protocol_name, choices=PROTOCOLS)
  add_arguments(parser)
  parser.add_argument("--cache_dir", type=as_path, help="folder for the references' statistics")
  parser.add_argument("--clip_weights", help="folder of a CLIP, for text_alignment")
  parser.add_argument(
    "--captions_apart",
    help="text file with one caption per line, for caption_accuracy: their samples are also reported apart",
  )
  shared = parser.add_argument_group("evaluations that several processes share through --parts_dir")
  shared.add_argument(
    "--process_index",
    type=int,
    help="compute only this process's parts; the command without it computes the scores",
  )
  shared.add_argument("--process_count", type=int, default=1, help="processes that share the parts")
  args = parser.parse_args(argv)
  if args.captions_apart and args.protocol != CAPTION_ACCURACY.name:
    parser.error(f"--captions_apart needs --protocol={CAPTION_ACCURACY.name}")
  if args.process_index is not None:
    if args.parts_dir is None:
      parser.error("--process_index needs --parts_dir, a folder that all processes share")
    if not 0 <= args.process_index < args.process_count:
      parser.error(
        f"expected 0 <= --process_index < --process_count, got {args.process_index} and "
        f"{args.process_count}"
      )
  elif args.process_count != 1:
    parser.error("--process_count needs --process_index")
  return args


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Evaluates, prints and writes; returns the result."""
  args = parse_arguments(argv)
  with waiting("evaluate", "importing JAX"):
    from walt_t5x.evaluation import feature_scores, prompt_scores

  with programs.user_errors("evaluate"):
    if args.protocol in BY_PROMPT:
      result = prompt_scores.score_by_prompt(args)
    else:
      score = (
        feature_scores.score_features if args.process_index is None else feature_scores.make_parts
      )
      with waiting("evaluate", "reading and scoring clips"):
        result = score(args)
  print(json.dumps(result))
  return result


if __name__ == "__main__":
  run()
