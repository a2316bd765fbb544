"""What a served page accepts: requests of that page itself, with bodies of a limited size."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_EVERYWHERE = ("0.0.0.0", "::", "[::]")


def plain_text(status: int, text: str) -> tuple[str, bytes]:
  """Media type and body of an answer with a status, for people."""
  return "text/plain; charset=utf-8", f"{text}\n".encode()


class Guard:
  """ASGI middleware that answers 403 to foreign pages, and 413 to bodies that are too large.

  A page on the loopback address is served under the names of that address only: a foreign name may be one that another
  site points to this machine. A request that a browser sends for another page has the Origin of that page.

  Args:
    app: what is guarded.
    host: address that the server listens on.
    max_bytes: largest body of a request.
    max_upload: largest body of a request to /upload.
    answer: (status, text) -> media type and body of an answer.
  """

  def __init__(
    self,
    app: Callable[..., Awaitable[None]],
    *,
    host: str,
    max_bytes: int,
    max_upload: int,
    answer: Callable[[int, str], tuple[str, bytes]] = plain_text,
  ):
    self._app, self._host, self._answer = app, host, answer
    self._max_bytes, self._max_upload = max_bytes, max_upload

  async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    problem = self._problem(scope) if scope["type"] == "http" else None
    if problem is None:
      await self._app(scope, receive, send)
      return
    media_type, body = self._answer(*problem)
    headers = [(b"content-type", media_type.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem[0], "headers": headers})
    await send({"type": "http.response.body", "body": body})

  def _problem(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
    """Status and text of the answer to a request that is not passed on."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if self._host not in _EVERYWHERE and name not in (*_LOOPBACK, self._host):
      return 403, f"got the Host {host!r}, expected {self._host}; --host=0.0.0.0 serves other names"
    if origin is not None and origin.partition("://")[2] != host:
      return 403, f"got the Origin {origin!r}, expected the page itself, {host}"
    if "transfer-encoding" in headers:
      return 411, "expected a request with a Content-Length"
    limit = self._max_upload if scope["path"].endswith("/upload") else self._max_bytes
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
      return 413, f"got {length} bytes, expected at most {limit:,}"
    return None
