"""Evaluation protocols by name, one file per protocol."""

from walt_t5x.metrics.protocols import (
  fvd,
  imagenet,
  k600,
  motion,
  shapes_fvd,
  tokenizer,
  ucf101,
  zero_shot_ucf101,
)
from walt_t5x.metrics.protocols.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
  module.PROTOCOL.name: module.PROTOCOL
  for module in (fvd, ucf101, k600, imagenet, zero_shot_ucf101, tokenizer, shapes_fvd, motion)
}
