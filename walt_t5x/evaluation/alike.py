"""Whether samples and references have the same size and rate at the point where a protocol scores them."""

import contextlib
from collections.abc import Iterable, Sequence

from walt_t5x.evaluation.media_files import Media
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.containers import IMAGE_SUFFIXES
from walt_t5x.media.facts import describe
from walt_t5x.media.rules import ReasonedError
from walt_t5x.metrics.protocols.protocol import Protocol

# Files of each side that are looked at.
_FILES = 8


def difference(samples: Sequence[Media], references: Sequence[Media], protocol: Protocol) -> str:
  """What differs and which flags remove it, in one line; '' if the first files of both are alike.

  A size or rate that the protocol states does not count: media files are read at it.
  """
  ours, theirs = ([_scored(m, protocol) for m in some[:_FILES]] for some in (samples, references))
  sizes, their_sizes = (_known(size for size, _ in some) for some in (ours, theirs))
  rates, their_rates = (_known(rate for _, rate in some) for some in (ours, theirs))
  flags = []
  if sizes and their_sizes and sizes != their_sizes:
    flags.append(f"--size={sizes[0]}")
  if rates and their_rates and rates != their_rates:
    flags.append(f"--fps={rates[0]}")
  if not flags:
    return ""
  shown = [
    " at ".join(filter(None, (", ".join(size), ", ".join(rate) and f"{', '.join(rate)} fps")))
    for size, rate in ((sizes, rates), (their_sizes, their_rates))
  ]
  return (
    f"the samples are {shown[0]}, the references {shown[1]}, and the score measures this too; "
    f"{' '.join(flags)} reads media files alike (another protocol hash)"
  )


def _scored(media: Media, protocol: Protocol) -> tuple[str, str]:
  """Size and rate of a file as it is scored; '' if unknown."""
  size, rate = media.size, media.fps
  if not media.generated:
    modality = "image" if media.path.suffix.lower() in IMAGE_SUFFIXES else "video"
    # A file that cannot be read is reported when its clip is.
    with contextlib.suppress(OSError, ReasonedError):
      facts = describe(media.path.read_bytes(), modality, ClipSpec.max_pixels)
      size, rate = facts.size, protocol.fps or facts.rate
  if protocol.size is not None:
    size = protocol.size
  return "x".join(map(str, size or ())), f"{rate:.3g}" if rate and protocol.frames > 1 else ""


def _known(values: Iterable[str]) -> list[str]:
  return list(dict.fromkeys(sorted(filter(None, values))))
