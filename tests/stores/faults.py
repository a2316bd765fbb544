"""A store with faults: a proxy in front of a server of `tests.stores.servers`.

  python -m tests.stores.faults --store=gs --rate=0.05 --seed=0

prints the variables with which programs find it, serves until it is interrupted, and prints what it did as JSON.

Whether a request fails depends only on the seed, its method, its path and how often it came, so that concurrent
requests do not change each other's faults.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp
import yarl
from aiohttp import web

from tests.stores import servers

# Kind -> what happens to the request.
KINDS = {
  "429": "the answer 'too many requests', the store sees nothing",
  "503": "the answer 'service unavailable', the store sees nothing",
  "reset": "the connection ends, the store sees nothing",
  "lost": "the connection ends, the store has done the work",
  "truncated": "the connection ends after half of the answer's body",
  "shortened": "half of the answer's body, with a header for that length",
  "stall": "the store sees the request after some seconds, if the client still waits",
  "late": "the answer comes some seconds after the store has done the work",
  "cut": "the connection ends after half of the request's body, on both sides",
}
DONE = "done"
_HOP = {"connection", "keep-alive", "transfer-encoding", "trailer", "upgrade", "expect"}


def applies(kind: str, method: str) -> bool:
  """Whether a request with this method can fail in this way."""
  if kind in ("truncated", "shortened"):
    return method == "GET"
  return kind != "cut" or method in ("PUT", "POST")


@dataclasses.dataclass
class Faults:
  """What goes wrong.

  Attributes:
    rates: probability per request of each kind.
    seed: of the draws.
    stall: seconds of a stall.
    lag: seconds for which listings leave out an object that was written.
    single: (kind, pattern, n): this fault at the n-th request, from 1, whose "METHOD operation path" matches.
    matched: requests that have matched.
    hit: the one that failed.
    most: only so many requests with one method, operation and path can fail.
  """

  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  stall: float = 10.0
  lag: float = 0.0
  single: tuple[str, str, int] | None = None
  most: int = sys.maxsize
  counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  _seen: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  matched: int = 0
  hit: str = ""

  def draw(self, method: str, operation: str, path: str) -> str:
    """The fault of a request, or ''."""
    request = f"{method} {operation} {path}"
    self._seen[request] += 1
    if self.single:
      kind, pattern, number = self.single
      if re.search(pattern, request):
        self.matched += 1
        if self.matched == number:
          self.hit = request
          return kind
      return ""
    if self._seen[request] > self.most:
      return ""
    drawn = random.Random(f"{self.seed} {request} {self._seen[request]}").random()
    for kind, rate in self.rates.items():
      drawn -= rate
      if drawn < 0:
        return kind
    return ""

  def requests(self, *methods: str) -> int:
    """How many requests came, or of them those with these methods."""
    counts = list(self.counts.items())
    return sum(n for (method, *_), n in counts if not methods or method in methods)

  def injected(self) -> int:
    """How many of them failed."""
    return sum(n for (*_, outcome), n in self.counts.items() if outcome in KINDS)

  def report(self) -> list[dict[str, str | int]]:
    """The counts as JSON."""
    names = "method", "operation", "outcome"
    return [dict(zip(names, key)) | {"requests": n} for key, n in sorted(self.counts.items())]


def operation(request: web.BaseRequest) -> str:
  """What a request asks of S3 or GCS."""
  path, query = request.rel_url.raw_path, request.rel_url.query
  if path.startswith("/upload/"):
    return "chunk" if "upload_id" in query else f"{query.get('uploadType', '')} upload"
  if path.startswith("/download/"):
    return "download"
  if path.startswith("/storage/v1/"):
    name = path.split("/o/")[-1]
    action = next((a for a in ("rewriteTo", "moveTo", "compose") if f"/{a}/" in path), "")
    return action or ("list" if path.rstrip("/").endswith("/o") else "object" if name else "bucket")
  if "list-type" in query:
    return "list"
  if "uploads" in query:
    return "start of parts"
  if "uploadId" in query:
    return "part" if "partNumber" in query else "end of parts"
  if "delete" in query:
    return "bulk delete"
  if "x-amz-copy-source" in request.headers:
    return "copy"
  return "object" if path.strip("/").count("/") else "bucket"


class _Proxy:
  def __init__(self, endpoint: str, faults: Faults):
    self._upstream, self._faults = endpoint, faults
    self.endpoint = ""
    self._written: dict[str, float] = {}
    self._session: aiohttp.ClientSession | None = None

  async def serve(self, stop: asyncio.Event, started: threading.Event) -> None:
    """Until `stop`."""
    # Each request has its connection, so that a fault of one is not seen by another.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
      connector=connector, auto_decompress=False, timeout=timeout
    ) as self._session:
      handler = web.Server(self._handle)
      listening = await asyncio.get_running_loop().create_server(handler, "127.0.0.1", 0)
      port = listening.sockets[0].getsockname()[1]
      self.endpoint = f"http://127.0.0.1:{port}"
      started.set()
      await stop.wait()
      listening.close()
      await handler.shutdown(0.1)
      waiting = asyncio.all_tasks() - {asyncio.current_task()}
      for task in waiting:
        task.cancel()
      await asyncio.gather(*waiting, return_exceptions=True)

  async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
    asked = operation(request)
    # A listing's folder is in its query.
    path = f"{request.rel_url.raw_path} {request.rel_url.query.get('prefix', '')}".strip()
    kind = self._faults.draw(request.method, asked, path)
    if not applies(kind, request.method) or (kind == "cut" and not request.body_exists):
      kind = ""
    # Before the client has its answer, so that it reads complete counts.
    self._faults.counts[request.method, asked, kind or DONE] += 1
    try:
      if kind in ("429", "503"):
        await _invite_body(request)
        async for _ in request.content.iter_any():
          pass
        return self._error(request, int(kind))
      if kind == "reset":
        return _reset(request)
      if kind == "stall":
        await asyncio.sleep(self._faults.stall)
        if request.transport is None or request.transport.is_closing():
          return web.Response()
      return await self._forward(request, asked, kind)
    except (aiohttp.ClientError, ConnectionError):
      return _reset(request)

  async def _forward(self, request: web.BaseRequest, asked: str, kind: str) -> web.StreamResponse:
    assert self._session is not None
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
    url = yarl.URL(self._upstream + request.raw_path, encoded=True)
    await _invite_body(request)
    body = _body(request, kind == "cut") if request.body_exists else None
    async with self._session.request(
      request.method, url, headers=headers, data=body, allow_redirects=False
    ) as found:
      if kind == "lost":
        await self._note(request, asked, found.status, await found.read())
        return _reset(request)
      answer = {k: v for k, v in found.headers.items() if k.lower() not in _HOP}
      if "Location" in answer:
        answer["Location"] = answer["Location"].replace(self._upstream, self.endpoint)
      length = int(answer.get("Content-Length", -1))
      if asked != "download" and request.method != "GET":
        content = await found.read()
        await self._note(request, asked, found.status, content)
      elif asked == "list" and self._faults.lag:
        content = self._lagging(await found.read())
        answer["Content-Length"] = str(len(content))
      elif kind == "shortened" and found.status < 300:
        content = await found.read()
        content = content[: len(content) // 2]
        answer["Content-Length"] = str(len(content))
      else:
        content = None
      if kind == "late":
        await asyncio.sleep(self._faults.stall)
      response = web.StreamResponse(status=found.status, headers=answer)
      await response.prepare(request)
      half, sent = kind == "truncated", 0
      async for piece in _once(content) if content is not None else found.content.iter_any():
        if half and sent + len(piece) > length // 2:
          await response.write(piece[: max(0, length // 2 - sent)])
          assert request.transport is not None
          request.transport.close()
          return response
        await response.write(piece)
        sent += len(piece)
      await response.write_eof()
      return response

  def _error(self, request: web.BaseRequest, status: int) -> web.Response:
    if "/storage/v1/" in request.path:
      error = {"error": {"code": status, "message": "injected"}}
      return web.json_response(error, status=status)
    code = "SlowDown" if status == 503 else "TooManyRequests"
    text = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")

  async def _note(self, request: web.BaseRequest, asked: str, status: int, content: bytes) -> None:
    """Remembers when an object was written."""
    if not self._faults.lag or status >= 300:
      return
    if "/storage/v1/" in request.path:
      if request.method == "POST" and content:
        answer = json.loads(content)
        answer = answer.get("resource", answer)
        self._written[answer.get("name", "")] = time.monotonic()
    elif request.method in ("PUT", "POST"):
      name = urllib.parse.unquote(request.rel_url.raw_path).lstrip("/").partition("/")[2]
      self._written[name] = time.monotonic()

  def _lagging(self, content: bytes) -> bytes:
    now = time.monotonic()
    recent = {name for name, at in self._written.items() if now - at < self._faults.lag}
    if content.startswith(b"{"):
      found = json.loads(content)
      found["items"] = [one for one in found.get("items") or [] if one["name"] not in recent]
      return json.dumps(found).encode()

    def kept(one: re.Match) -> str:
      name = re.search("<Key>(.*?)</Key>", one[0])
      return "" if name and urllib.parse.unquote(name[1]) in recent else one[0]

    text = re.sub("<Contents>.*?</Contents>", kept, content.decode(), flags=re.DOTALL)
    return text.encode()


async def _invite_body(request: web.BaseRequest) -> None:
  """What servers do in `web.Application`."""
  if request.headers.get("Expect"):
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0


async def _once(content: bytes) -> AsyncIterator[bytes]:
  yield content


async def _body(request: web.BaseRequest, cut: bool) -> AsyncIterator[bytes]:
  limit, sent = int(request.headers.get("Content-Length", 0)) // 2, 0
  async for piece in request.content.iter_any():
    if cut and sent + len(piece) > limit:
      yield piece[: max(0, limit - sent)]
      await asyncio.sleep(0.02)  # So that the store receives it.
      raise ConnectionResetError
    yield piece
    sent += len(piece)


def _reset(request: web.BaseRequest) -> web.Response:
  if request.transport is not None:
    request.transport.abort()
  return web.Response()


@contextlib.contextmanager
def proxied(server: servers.Server, faults: Faults) -> Iterator[servers.Server]:
  """The server behind a proxy, which is a thread of this process."""
  proxy, started = _Proxy(server.endpoint, faults), threading.Event()
  loop, stop = asyncio.new_event_loop(), asyncio.Event()

  def run() -> None:
    asyncio.set_event_loop(loop)
    loop.run_until_complete(proxy.serve(stop, started))
    loop.close()

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  assert started.wait(20), "the proxy did not start"
  try:
    yield server.behind(proxy.endpoint)
  finally:
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--store", choices=servers.SERVERS, required=True)
  parser.add_argument("--rate", type=float, default=0.05, help="probability of each kind")
  parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--stall", type=float, default=10.0, help="seconds")
  parser.add_argument("--lag", type=float, default=0.0, help="seconds")
  args = parser.parse_args()
  rates = {kind: float(args.rate) for kind in args.kinds}
  faults = Faults(rates, seed=args.seed, stall=args.stall, lag=args.lag)
  ended = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *unused: ended.set())
  with servers.SERVERS[args.store]() as server, proxied(server, faults) as behind:
    for name, value in behind.environment.items():
      print(f"export {name}={value}")
    print(f"export STORE={behind.address}", flush=True)
    ended.wait()
  json.dump(faults.report(), sys.stdout, indent=1)
  print(flush=True)


if __name__ == "__main__":
  main()
