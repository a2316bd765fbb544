"""A client of servers that speak OpenAI's chat completions API: one request, with a time limit for all of it.

The key is sent in a header, and is removed from what the server says: it is in no exception and in no answer.
"""

import contextlib
import email.utils
import http.client
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from beam_jobs.sources.rows import is_utf8, load_json

_MAX_ANSWER_BYTES = 1 << 24
_SHOWN_CHARACTERS = 200
# A shorter key, such as the EMPTY of servers without keys, is not a secret, and may be a word of a caption.
_SHORTEST_SECRET = 8


class NoAnswer(Exception):
  """A request that may be answered later.

  Attributes:
    after: seconds that the server asks to wait.
  """

  def __init__(self, message: str, after: float = 0.0):
    super().__init__(message)
    self.after = after


class RejectedRequest(Exception):
  """The server does not answer this request, now or later."""


class Unauthorized(ValueError):
  """The server does not accept the key."""


class Answer(NamedTuple):
  """Text of an answer, and why it ended: "stop", "length" if it was cut off, ..."""

  text: str
  finish: str


class ChatClient:
  """Sends requests to a server; safe to share among threads.

  Args:
    url: base of the API, such as http://localhost:8000/v1.
    key: sent as a bearer token, unless it is "".
    timeout: seconds for a request, from connecting to the last byte of the answer.

  Raises:
    ValueError: the address or the key cannot be used.
  """

  def __init__(self, url: str, *, key: str, timeout: float):
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
      raise ValueError("expected an address without user, password, query and fragment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"got {url!r}, expected an address such as http://localhost:8000/v1")
    if not (key.isascii() and key.isprintable()) or " " in key:
      raise ValueError("the key has characters other than printable ASCII")
    self._kind: Any = http.client.HTTPConnection
    if parts.scheme == "https":
      self._kind = http.client.HTTPSConnection
    self._host, self._port = parts.hostname, parts.port
    self._path = f"{parts.path.rstrip('/')}/chat/completions"
    self._url, self._key, self._timeout = url, key, timeout
    self._open: set[socket.socket] = set()
    self._closed = False
    self._lock = threading.Lock()

  def ask(self, body: bytes, *, idempotency_key: str) -> Answer:
    """The answer to a request.

    Args:
      body: JSON of the API.
      idempotency_key: the same for a request that is repeated, so that the server may answer it only once.

    Raises:
      NoAnswer: no answer, or none that is complete: it may help to ask again.
      RejectedRequest: it does not.
      Unauthorized: no request with this key is answered.
    """
    try:
      status, headers, content = self._send(body, idempotency_key)
    except (OSError, http.client.HTTPException) as error:
      said = f"{type(error).__name__}: {error}".removesuffix(": ")
      raise NoAnswer(self._shown(said)) from None
    if status == 200:
      return self._parsed(content)
    said = f"{status} {http.client.responses.get(status, '')}: {_message(content)}"
    said = self._shown(said.rstrip(": "))
    if status in (401, 403):
      raise Unauthorized(f"{self._url} answers {said}")
    if status in (408, 429) or status >= 500:
      raise NoAnswer(said, _seconds(headers.get("Retry-After", "")))
    raise RejectedRequest(said)

  def close(self) -> None:
    """Ends the requests that are being answered with an error, and those that follow."""
    with self._lock:
      self._closed = True
      for one in self._open:
        _abort(one)

  def _send(self, body: bytes, idempotency_key: str) -> tuple[int, Mapping[str, str], bytes]:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
    headers |= {"Accept": "application/json", "Connection": "close"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    connection = self._kind(self._host, self._port, timeout=self._timeout)
    with contextlib.closing(connection), self._limited(connection):
      connection.request("POST", self._path, body, headers)
      response = connection.getresponse()
      return response.status, response.headers, response.read(_MAX_ANSWER_BYTES + 1)

  @contextlib.contextmanager
  def _limited(self, connection: http.client.HTTPConnection) -> Iterator[None]:
    """Connects; in the block, time is limited. A socket's own limit is for each of its operations."""
    passed, started = threading.Event(), time.monotonic()
    connection.connect()
    used: Any = connection.sock

    def expire() -> None:
      passed.set()
      _abort(used)

    timer = threading.Timer(started + self._timeout - time.monotonic(), expire)
    timer.daemon = True
    with self._lock:
      if self._closed:
        raise ConnectionAbortedError("the client is closed")
      self._open.add(used)
    timer.start()
    try:
      yield
    except (OSError, http.client.HTTPException):
      if not passed.is_set():
        raise
    finally:
      timer.cancel()
      with self._lock:
        self._open.discard(used)
    if passed.is_set():
      raise TimeoutError(f"no complete answer within {self._timeout:g} s")

  def _parsed(self, content: bytes) -> Answer:
    try:
      if len(content) > _MAX_ANSWER_BYTES:
        raise ValueError(f"more than {_MAX_ANSWER_BYTES} bytes")
      choice = load_json(content)["choices"][0]
      text, finish = choice["message"]["content"], choice.get("finish_reason")
      text = "" if text is None else text
      if not isinstance(text, str) or not is_utf8(text):
        raise ValueError("its content is not a text")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      said = self._shown(f"got an incomplete answer ({type(error).__name__}: {error})")
      raise NoAnswer(said) from None
    return Answer(" ".join(self._without_key(text).split()), self._without_key(str(finish)))

  def _without_key(self, text: str) -> str:
    return text if len(self._key) < _SHORTEST_SECRET else text.replace(self._key, "***")

  def _shown(self, text: str) -> str:
    text = " ".join(self._without_key(text).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _abort(used: socket.socket) -> None:
  """Ends what other threads do with a socket."""
  with contextlib.suppress(OSError):
    socket.socket.shutdown(used, socket.SHUT_RDWR)


def _message(content: bytes) -> str:
  """What the body of an error says: a field of its JSON, or its text."""
  text = content.decode(errors="replace")
  with contextlib.suppress(ValueError, AttributeError):
    found = load_json(text)
    found = found.get("error") or found
    found = found if isinstance(found, str) else found.get("message") or found.get("detail")
    return str(found or text)
  return text


def _seconds(retry_after: str) -> float:
  """Seconds of a header, a number or a date; 0 for what is neither."""
  with contextlib.suppress(ValueError):
    return max(0.0, float(retry_after))
  with contextlib.suppress(ValueError):
    until = email.utils.parsedate_to_datetime(retry_after)
    return max(0.0, until.timestamp() - time.time())
  return 0.0
