"""Protocols that compare each clip with its prompt: the fields that determine their scores, and a hash of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from walt_t5x.metrics import (
  caption_accuracy,
  clip_similarity,
  scene_captions,
  scene_reader,
  shape_reader,
)
from walt_t5x.metrics.protocols.protocol import Hashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptProtocol(Hashed):
  """A protocol for the output of `generate`: every clip of every stage, at its own length and size.

  `fields` has everything that determines a score except clips, prompts and the weights of the network.
  """

  name: str
  fields: Mapping[str, Any]
  source: str


CAPTION_ACCURACY = PromptProtocol(
  name="caption_accuracy",
  fields={
    # Every constant of the classifier, by name.
    **{
      name.lower(): value
      for module in (caption_accuracy, shape_reader, scene_reader, scene_captions)
      for name, value in vars(module).items()
      if name.isupper()
    },
    "color": "most foreground pixels of all frames",
    "shape": "template with the largest soft intersection over union, averaged over frames",
    "direction": "centroid from the first frame to the last",
    "scene": "objects by least-squares coverage, motion in frames in which they are complete",
  },
  source="walt_t5x/metrics/caption_accuracy.py",
)
ALIGNMENT = PromptProtocol(
  name="text_alignment",
  fields={
    "statistic": "mean over clips of the mean over frames of the cosine of frame and prompt",
    "resize": "shorter edge, bicubic (PIL), central square",
    "mean": clip_similarity.MEAN,
    "std": clip_similarity.STD,
  },
  source="arXiv:2104.14806 (CLIPSIM)",
)
BY_PROMPT = {protocol.name: protocol for protocol in (CAPTION_ACCURACY, ALIGNMENT)}
