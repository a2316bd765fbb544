"""Generation requests of a benchmark, and the references that its samples are compared with.

  python -m walt_t5x.evaluation.benchmark_requests --protocol=ucf101_class_conditional --media=UCF-101 \\
    --list=ucfTrainTestlist/trainlist01.txt --output=ucf101

writes `requests.jsonl` for `python -m walt_t5x.generate --requests` and, if there are reference files,
`reference.jsonl` for `python -m walt_t5x.evaluate --reference`. Classes are numbered in the order of sorted names,
as in `beam_jobs.preprocess`.

  ucf101_class_conditional  labels drawn from the training videos
  ucf101_stylegan_v         the same for StyleGAN-V's evaluation, which has all 13,320 videos: without --list
  ucf101_zero_shot          one prompt per class, all classes equally often
  imagenet256               labels 0 to 999, all equally often
  k600_frame_prediction     5 frames at a random position of each evaluation video, cut like training data, as separate
                            lossless clips
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.class_names import class_words
from walt_t5x.config import programs, usage
from walt_t5x.files import storage
from walt_t5x.media.containers import VIDEO_SUFFIXES, is_hidden
from walt_t5x.metrics import protocols

IMAGENET_CLASSES = 1000
_CONDITIONING_FRAMES, _CLIP_FRAMES = 5, 16
# Class name -> its files.
Videos = dict[str, list[Path]]
# Lines of `requests.jsonl`.
Rows = Iterator[dict[str, Any]]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.evaluation.benchmark_requests", __doc__)
  parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
  parser.add_argument("--media", type=usage.local_path, help="root of the data set: <class>/<file>")
  parser.add_argument(
    "--list", type=usage.local_path, help="UCF-101's file list of the videos to use"
  )
  parser.add_argument(
    "--prompts", type=usage.local_path, help="one prompt per line, in the order of the classes"
  )
  parser.add_argument("--count", type=int, help="requests (default: the protocol's, all folds)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--size", type=int, default=128, help="edge of the conditioning frames")
  parser.add_argument("--fps", type=float, default=25.0, help="their frame rate")
  parser.add_argument("--output", type=usage.local_path, required=True, help="folder")
  args = parser.parse_args(argv)
  if args.media is None and args.protocol != "imagenet256":
    parser.error(f"--protocol={args.protocol} needs --media")
  return args


def class_videos(media: Path, listed: Path | None) -> Videos:
  """Class name -> its videos, both sorted; if a list is given (`Class/file.avi 1` per line), only its files."""

  def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(file.name) and file.is_file()

  folders = sorted(f for f in media.iterdir() if f.is_dir() and not is_hidden(f.name))
  found = {folder.name: sorted(filter(is_video, folder.iterdir())) for folder in folders}
  found = {name: files for name, files in found.items() if files}
  if not found:
    raise ValueError(f"--media={media} has no class folders with videos; expected <class>/<file>")
  if listed is None:
    return found
  wanted = [line.split()[0] for line in listed.read_text("utf-8").splitlines() if line.strip()]
  missing = [name for name in wanted if not (media / name).is_file()]
  if missing:
    raise ValueError(
      f"--list={listed}: {len(missing)} of {len(wanted)} files are not under {media}, such as {missing[0]}"
    )
  chosen = set(wanted)
  return {
    name: [file for file in files if f"{name}/{file.name}" in chosen]
    for name, files in found.items()
  }


def labels_of_videos(args: argparse.Namespace, videos: Videos, count: int) -> Rows:
  """Labels drawn independently, with the frequencies of the videos."""
  counts = np.array([len(files) for files in videos.values()], np.float64)
  random = np.random.default_rng(args.seed)
  draws = random.choice(len(counts), size=count, p=counts / counts.sum())
  return ({"label": label} for label in draws.tolist())


def labels_in_turn(args: argparse.Namespace, videos: Videos, count: int) -> Rows:
  """The classes of ImageNet, all equally often."""
  return ({"label": index % IMAGENET_CLASSES} for index in range(count))


def class_prompts(args: argparse.Namespace, videos: Videos, count: int) -> Rows:
  """One prompt per class, all equally often. Assumption: without --prompts, the class's name in words."""
  prompts = [class_words(name) for name in videos]
  if args.prompts is not None:
    lines = args.prompts.read_text("utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
  if len(prompts) != len(videos):
    raise ValueError(
      f"--prompts={args.prompts} has {len(prompts)} prompts, expected {len(videos)}, one per class"
    )
  return ({"prompt": prompts[index % len(prompts)]} for index in range(count))


def conditioning_clips(args: argparse.Namespace, videos: Videos, count: int) -> Rows:
  """Writes the first 5 of 16 frames at a random position of each video, iterating over the videos.

  A clip that already exists is kept, so that the command resumes after an interruption.
  """
  from tqdm import tqdm

  from walt_t5x.media import decoding, writing

  frames_of = leave_out_short(videos, frames=_CLIP_FRAMES, fps=args.fps)
  folder = args.output / "given"
  folder.mkdir(parents=True, exist_ok=True)
  sources = tuple(frames_of)
  bar = tqdm(total=count, unit="clip", file=sys.stderr, disable=None)
  for index in range(count):
    source, target = sources[index % len(sources)], folder / f"{index:06d}{writing.LOSSLESS_SUFFIX}"
    if not target.is_file():
      kept = frames_of[source]
      first = int(np.random.default_rng((args.seed, index)).integers(len(kept) - _CLIP_FRAMES + 1))
      numbers = kept[first : first + _CONDITIONING_FRAMES]
      size = (args.size, args.size)
      frames = decoding.native_frames(source.read_bytes(), numbers, size=size)
      with writing.lossless_writer(target, fps=args.fps) as append:
        append(frames)
    bar.update()
    yield {"video": str(target.relative_to(args.output))}
  bar.close()


def leave_out_short(videos: Videos, *, frames: int, fps: float) -> dict[Path, list[int]]:
  """The numbers of each video's frames at this rate; removes and names on stderr those that are too short or slow.

  Raises:
    ValueError: no video is left.
  """
  from tqdm import tqdm

  from walt_t5x.media import reading

  frames_of: dict[Path, list[int]] = {}
  found = [(files, file) for files in videos.values() for file in files]
  for files, file in tqdm(found, unit="video", file=sys.stderr, disable=None):
    try:
      kept = reading.resampled(reading.frame_times(file), fps)
      if len(kept) < frames:
        raise ValueError(f"{len(kept)} frames at {fps:g} fps, expected {frames}")
      frames_of[file] = kept
    except (ValueError, OSError) as error:
      print(f"benchmark_requests: left out {file}: {error}", file=sys.stderr)
      files.remove(file)
  if not frames_of:
    raise ValueError(f"--media: no video has {frames} frames at {fps:g} fps")
  return frames_of


PROTOCOLS = {
  "ucf101_class_conditional": labels_of_videos,
  "ucf101_stylegan_v": labels_of_videos,
  "ucf101_zero_shot": class_prompts,
  "imagenet256": labels_in_turn,
  "k600_frame_prediction": conditioning_clips,
}


def write(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the files.

  Returns:
    {"requests", "count"} and, with reference files, {"reference", "reference_files", "left_out"}.

  Raises:
    ValueError: media, list or prompts do not fit.
  """
  protocol = protocols.PROTOCOLS[args.protocol]
  count = args.count or (protocol.sample_count or 0) * protocol.folds
  videos = class_videos(args.media, args.list) if args.media else {}
  found = sum(map(len, videos.values()))
  rows = PROTOCOLS[args.protocol](args, videos, count)
  if videos and protocol.fps and PROTOCOLS[args.protocol] is not conditioning_clips:
    # After the labels and prompts, which are those of all videos.
    leave_out_short(videos, frames=protocol.frames, fps=protocol.fps)
  requests, reference = args.output / "requests.jsonl", args.output / "reference.jsonl"
  storage.write(requests, "".join(json.dumps(row) + "\n" for row in rows))
  result: dict[str, Any] = {"requests": str(requests), "count": count}
  if files := [file for group in videos.values() for file in group]:
    uris = ({"uri": str(file.resolve())} for file in files)
    storage.write(reference, "".join(json.dumps(row) + "\n" for row in uris))
    result |= {"reference": str(reference), "reference_files": len(files)}
    result |= {"left_out": found - len(files)}
  return result


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the files and prints a summary."""
  with programs.user_errors("benchmark_requests"):
    print(json.dumps(write(parse_arguments(argv))))


if __name__ == "__main__":
  main()
