"""Repeats file operations, and requests to object stores, that fail for a reason that may pass."""

import asyncio
import errno
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from walt_t5x.files import store_errors

_Result = TypeVar("_Result")
# Seconds. Pauses double from the first to the longest, each times a random factor between 0.5 and 1.5. The deadline
# counts from the first failure: a large object may take longer than that.
FIRST_PAUSE, LONGEST_PAUSE, DEADLINE = 0.5, 20.0, 120.0
# Seconds to connect to an object store, and without a byte of its answer.
CONNECT, SILENCE = 10.0, 30.0
# Bytes per request of a large upload, and per second of the slowest one.
CHUNK, SLOWEST = 16 * 2**20, 2**18

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
# Of an error or its bases, so that the clients of object stores are not imported.
_NAMES = {
  "AbortedError",
  "ChecksumError",
  "ChunkedEncodingError",
  "ClientConnectionError",
  "ClientPayloadError",
  "ConnectionError",
  "DeadlineExceededError",
  "FlexibleChecksumError",
  "HTTPClientError",
  "IncompleteRead",
  "IncompleteReadError",
  "ResponseParserError",
  "ResponseStreamingError",
  "TransportError",
  "UnavailableError",
}
# Codes of S3 whose status is 4xx.
_CODES = {"BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted"}
_CODES |= {"RequestTimeout", "XAmzContentSHA256Mismatch"}
# Operations that create an object.
_WRITES = ("create", "write")


class Incomplete(ConnectionError):
  """An answer that is not all of what was asked for."""


class Outage(OSError):
  """Errors that may pass continued for `DEADLINE` seconds."""

  def __init__(self, attempts: int, last: Exception):
    super().__init__(getattr(last, "errno", None) or errno.EIO, str(last))
    self.attempts, self.last = attempts, last


def may_pass(error: BaseException) -> bool:
  """Whether an operation that failed with this error may succeed later."""
  if isinstance(error, Outage):
    return False
  # s3fs translates the errors of botocore, which are the causes, and drops the status.
  answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
  answer = answer if isinstance(answer, dict) else {}
  if answer.get("Error", {}).get("Code") in _CODES:
    return True
  status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
  status = str(status or getattr(error, "status", None) or getattr(error, "code", None))
  if status in ("408", "429") or re.fullmatch(r"5\d\d", status):
    return True
  if isinstance(error, (ConnectionError, TimeoutError)):
    return True
  if _NAMES & {base.__name__ for base in type(error).__mro__}:
    return True
  return isinstance(error, OSError) and error.errno in _NUMBERS


class _Attempts:
  """The attempts of one call."""

  def __init__(self) -> None:
    self.count, self._end = 0, 0.0

  def pause(self, error: Exception) -> float:
    """Seconds before the attempt after one that failed; raises what ends the call."""
    self.count += 1
    if not may_pass(error):
      raise error
    now = time.monotonic()
    if self.count == 1:
      self._end = now + DEADLINE
    pause = min(FIRST_PAUSE * 2 ** (self.count - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.5)
    if now + pause > self._end:
      raise Outage(self.count, error) from error
    return pause


def retried(operation: str, path: str, call: Callable[[], _Result]) -> _Result:
  """Result of a call that can be repeated.

  Raises:
    OSError: if errors that may pass continue for `DEADLINE` seconds; it names operation, path and attempts.
    Exception: any other error of the call, at once, with these as a note.
  """
  attempts = _Attempts()

  def told(count: int) -> str:
    return f"cannot {operation} {path}, {count} attempt{'s' * (count > 1)}"

  try:
    while True:
      try:
        return call()
      except Exception as error:
        pause = attempts.pause(error)
      time.sleep(pause)
  except Outage as outage:
    last = f"{type(outage.last).__name__}: {outage.last}".removesuffix(": ")
    message = f"{told(outage.attempts)} within {DEADLINE:.0f} seconds: {last}"
    raise OSError(outage.errno, message) from outage.last
  except Exception as error:
    if meaning := store_errors.explained(path, error, writes=operation in _WRITES):
      raise meaning from error
    error.add_note(told(attempts.count))
    raise


async def retried_request(call: Callable[[], Awaitable[_Result]], *, sends: int | None) -> _Result:
  """Result of one request of an operation, inside `retried`.

  Args:
    call: makes the request.
    sends: bytes of its body, for which clients have no limit of time; None without a body.

  Raises:
    Outage: if errors that may pass continue for `DEADLINE` seconds.
  """
  attempts = _Attempts()
  limit = None if sends is None else CONNECT + SILENCE + sends / SLOWEST
  while True:
    try:
      return await asyncio.wait_for(call(), limit)
    except Exception as error:
      pause = attempts.pause(error)
    await asyncio.sleep(pause)


def check_range(content: bytes, *, asked: str, answered: str) -> None:
  """Raises `Incomplete` unless the content is the range that was asked for, up to the end of the object.

  Args:
    content: the body of the answer.
    asked: the header `Range`, such as "bytes=0-9".
    answered: the header `Content-Range`, such as "bytes 0-9/100"; "" if there is none.
  """
  first, _, last = asked.removeprefix("bytes=").partition("-")
  found = [int(n) for n in re.findall(r"\d+", answered)]
  if len(found) == 3:
    end = min(int(last or found[2]), found[2] - 1)
    if found[:2] == [int(first), end] and len(content) == end + 1 - int(first):
      return
  raise Incomplete(f"got {len(content)} bytes ({answered or 'no Content-Range'}), expected {asked}")
