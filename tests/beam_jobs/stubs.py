"""Functions that fail in various ways in a separate process, and a decoder that does so on request."""

import ctypes
import os
import signal
import time

import numpy as np

from walt_t5x.media import decoding, reading

HANG, CRASH, HUNGRY = b"hang" * 99, b"crash" * 99, b"hungry" * 99
# Bound here because a test replaces `decoding.decode` by `decode`.
_DECODE = decoding.decode


def misbehave(what: str, value=None):
  """Sleeps, crashes, exhausts the memory, raises, exits, or returns the value and the process id."""
  if what == "sleep":
    time.sleep(600)
  if what == "crash":
    ctypes.string_at(0)
  if what == "exit":
    os._exit(7)
  if what == "hungry":
    return np.ones(1 << 33, np.uint8).sum()
  if what == "raise":
    raise reading.MediaError("some_reason", "some words")
  if what == "crowded":
    own = value / str(os.getpid())
    own.touch()
    time.sleep(0.1)
    if any(os.path.exists(f"/proc/{other.name}") for other in value.iterdir() if other != own):
      os.kill(os.getpid(), signal.SIGKILL)
    own.unlink()
  if what == "unpicklable":
    return lambda: None
  return value, os.getpid()


def count(number: int, *, then: str = "return", size: int = 0):
  """Yields (i, the process id, `size` bytes) for each number below `number`, then misbehaves."""
  for i in range(number):
    yield i, os.getpid(), bytes(size)
  misbehave(then)


def decode(content: bytes, modality: str, spec, **window):
  """The real decoder, except for files that request a failure."""
  for start, what in ((HANG, "sleep"), (CRASH, "crash"), (HUNGRY, "hungry")):
    if content.startswith(start):
      misbehave(what)
  return _DECODE(content, modality, spec, **window)
