"""Scores of protocols that judge each generated clip by its prompt."""

import argparse
import collections
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from walt_t5x.evaluation.feature_scores import log_scores
from walt_t5x.files import storage
from walt_t5x.files.paths import as_path
from walt_t5x.generation.requests import read_prompts
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.metrics.caption_counts import Verdict, tally
from walt_t5x.metrics.clip_similarity import ClipSimilarity
from walt_t5x.metrics.protocols.by_prompt import ALIGNMENT, CAPTION_ACCURACY, PromptProtocol
from walt_t5x.metrics.scene_captions import judge


def score_by_prompt(args: argparse.Namespace) -> dict[str, Any]:
  """Scores of an output folder of `generate`; caption accuracy is also shown in its gallery."""
  folder = SampleFolder(args.samples)
  if args.protocol == CAPTION_ACCURACY.name:
    result = caption_accuracy(folder, args.captions_apart)
    folder.write_scores(result)
    said = {"gallery": str(folder.write_gallery())}
  else:
    result = text_alignment(folder, args.clip_weights)
    file = args.output or as_path(args.samples) / f"scores_{ALIGNMENT.name}.json"
    storage.write_json(file, result)
    said = {"network_fingerprint": result["network_fingerprint"], "file": str(file)}
  if args.log_dir:
    step = max((max(s.sidecar["steps"].values()) for s in folder.samples()), default=0)
    values = {
      f"{stage}/{name}@{result['protocol_hash']}": value
      for stage, scores in result["scores"].items()
      for name, value in scores.items()
    }
    log_scores(args.log_dir, step, values)
  print(f"protocol {result['protocol']}@{result['protocol_hash']}")
  kept = ("protocol", "protocol_hash", "scores", "scores_apart")
  return {k: result[k] for k in kept if k in result} | said


def caption_accuracy(folder: SampleFolder, captions_apart: str | None = None) -> dict[str, Any]:
  """Scores the video files of every stage; the protocol reports the first stage's counts.

  Args:
    captions_apart: text file with one caption per line, such as those that no training example has.

  Returns:
    {"protocol", "protocol_hash", "fields", "scores": {stage: {name: number}}, "verdicts": {index: {stage: {element:
    right}}}}, and with `captions_apart` "scores_apart", the scores of the samples with these prompts.

  Raises:
    ValueError: `captions_apart` cannot be read, or no sample has one of its captions as its prompt.
  """
  apart = frozenset[str]()
  if captions_apart:
    apart = frozenset(read_prompts((), captions_apart, flag="--captions_apart"))
    prompts = {sample.prompt for sample in folder.samples()}
    if not apart & prompts:
      raise ValueError(
        f"--captions_apart={captions_apart}: no sample of {folder.path} has one of these captions as its "
        f"prompt, such as {min(apart)!r}; a prompt of the samples is {min(prompts)!r}"
      )
  every, chosen = collections.defaultdict(list), collections.defaultdict(list)
  verdicts = collections.defaultdict(dict)
  for sample, stage, video in _clips(folder, "judge"):
    verdict = judge(video, sample.prompt)
    every[stage].append(verdict)
    if sample.prompt in apart:
      chosen[stage].append(verdict)
    verdicts[str(sample.index)][stage] = dict(verdict.right)
  result = _named(CAPTION_ACCURACY) | {"scores": _counted(every), "verdicts": verdicts}
  return result | ({"scores_apart": _counted(chosen, f", {captions_apart}")} if apart else {})


def _counted(
  by_stage: Mapping[str, Iterable[Verdict]], where: str = ""
) -> dict[str, dict[str, float]]:
  """Prints and returns the counts of every stage."""
  totals = {stage: tally(verdicts) for stage, verdicts in by_stage.items()}
  for stage, total in totals.items():
    print(f"{stage}{where}: {total}")
  return {stage: total.as_dict() for stage, total in totals.items()}


def text_alignment(folder: SampleFolder, clip_weights: str | None) -> dict[str, Any]:
  """The mean similarity between every stage's clips and their prompts.

  Returns:
    {"protocol", "protocol_hash", "fields", "network_fingerprint", "scores": {stage: {name: number}}}.
  """
  clip = ClipSimilarity.load(clip_weights)
  by_stage = collections.defaultdict(list)
  for sample, stage, video in _clips(folder, "align"):
    by_stage[stage].append(clip(clip_to_uint8(video), sample.prompt))
  scores = {
    stage: {
      "text_alignment/similarity": float(np.mean(values)),
      "text_alignment/std": float(np.std(values)),
      "text_alignment/clips": float(len(values)),
    }
    for stage, values in by_stage.items()
  }
  for stage, found in scores.items():
    print(f"{stage}: similarity {found['text_alignment/similarity']:.4f}")
  return _named(ALIGNMENT) | {"network_fingerprint": clip.fingerprint, "scores": scores}


def _clips(folder: SampleFolder, doing: str) -> Iterator[tuple[Any, str, np.ndarray]]:
  """(sample, stage, pixels [T, H, W, 3] in [0, 1]) of every file."""
  for sample in tqdm(
    list(folder.samples()), unit="video", desc=doing, file=sys.stderr, disable=None
  ):
    for stage in sample.files:
      yield sample, stage, folder.read(sample, stage)


def _named(protocol: PromptProtocol) -> dict[str, Any]:
  return {
    "protocol": protocol.name,
    "protocol_hash": protocol.hash,
    "fields": protocol.as_dict(),
  }
