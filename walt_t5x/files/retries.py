"""Repeats file operations that fail for a reason that may pass."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from walt_t5x.files import store_errors

_Result = TypeVar("_Result")
# Seconds. Pauses double from the first to the longest, each times a random factor between 0.5 and 1.5.
FIRST_PAUSE, LONGEST_PAUSE, DEADLINE = 0.5, 20.0, 120.0

_NUMBERS = {
  errno.EAGAIN,
  errno.EBUSY,
  errno.ECONNABORTED,
  errno.ECONNREFUSED,
  errno.ECONNRESET,
  errno.EHOSTUNREACH,
  errno.EINTR,
  errno.ENETDOWN,
  errno.ENETUNREACH,
  errno.EPIPE,
  errno.ESTALE,
  errno.ETIMEDOUT,
}
# By name, so that the clients of object stores are not imported.
_NAMES = {
  "AbortedError",
  "ClientPayloadError",
  "DeadlineExceededError",
  "IncompleteRead",
  "ServerDisconnectedError",
  "UnavailableError",
}
# Operations that create an object.
_WRITES = ("create", "write")


def may_pass(error: Exception) -> bool:
  """Whether an operation that failed with this error may succeed later."""
  status = getattr(error, "status", None) or getattr(error, "code", None)
  if isinstance(status, int) and (status in (408, 429) or 500 <= status < 600):
    return True
  if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in _NAMES:
    return True
  return isinstance(error, OSError) and error.errno in _NUMBERS


def retried(operation: str, path: str, call: Callable[[], _Result]) -> _Result:
  """Result of a call that can be repeated.

  Raises:
    OSError: if errors that may pass continue for `DEADLINE` seconds; it names operation, path and attempts.
    Exception: any other error of the call, at once, with these as a note.
  """
  end, attempt = time.monotonic() + DEADLINE, 0
  while True:
    attempt += 1
    try:
      return call()
    except Exception as error:
      told = f"cannot {operation} {path}, {attempt} attempt{'s' * (attempt > 1)}"
      if not may_pass(error):
        if meaning := store_errors.explained(path, error, writes=operation in _WRITES):
          raise meaning from error
        error.add_note(told)
        raise
      pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.5)
      if time.monotonic() + pause > end:
        raise OSError(
          getattr(error, "errno", None) or errno.EIO,
          f"{told} within {DEADLINE:.0f} seconds: {type(error).__name__}: {error}",
        ) from error
    time.sleep(pause)
