"""A server of the chat completions API that describes gray pictures, with faults drawn by a seed."""

import base64
import collections
import contextlib
import http.server
import io
import json
import random
import threading
import time

import numpy as np
from PIL import Image

KINDS = ("429", "500", "hang", "truncated", "wrong_language")
HANG_SECONDS = 1.3


def frames_of(request: dict) -> list[int]:
  """The number of each frame in a video whose frame n is gray of level 2 n."""
  urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
  head = "data:image/jpeg;base64,"
  return [frame_of(base64.b64decode(url.removeprefix(head), validate=True)) for url in urls]


def frame_of(jpeg: bytes) -> int:
  """The number of a frame."""
  return round(float(np.asarray(Image.open(io.BytesIO(jpeg))).mean()) / 2)


def describe(request: dict) -> str:
  """A caption that tells clip and prompt."""
  prompt = request["messages"][0]["content"][-1]["text"]
  return f"Gray frames {' '.join(map(str, frames_of(request)))} answer {prompt}"


class ChatServer(http.server.ThreadingHTTPServer):
  """Serves while it is open.

  Args:
    rate: probability of each of `KINDS`.
    answer: replaces `describe`; may return a text or (status, body as bytes, headers).

  Attributes:
    url: base of the API.
    log: (time, Idempotency-Key, Authorization, what was sent) of each request; "answer TEXT" for a complete answer.
    faults: number of each kind.
  """

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, *, rate=0.0, answer=describe):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.url = f"http://127.0.0.1:{self.server_port}/v1"
    self.rate, self.answer = rate, answer
    self.log, self.faults = [], collections.Counter()
    self.lock, self.active = threading.Lock(), 0
    self._seen = collections.Counter()

  def __enter__(self):
    threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *unused):
    self.shutdown()
    self.server_close()

  def handle_error(self, request, client_address):
    pass  # Clients that time out or are killed.

  def draw(self, key):
    """The fault of a request, or None; the same for the nth request with a key."""
    with self.lock:
      self._seen[key] += 1
      kind = int(random.Random(f"{key} {self._seen[key]}").random() / max(self.rate, 1e-9))
      found = KINDS[kind] if kind < len(KINDS) else None
      self.faults[found] += 1
      return found

  def texts(self):
    """The complete answers, in order."""
    with self.lock:
      return [said.removeprefix("answer ") for *_, said in self.log if said.startswith("answer ")]

  def wait_until_idle(self):
    while self.active:
      time.sleep(0.01)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *unused):
    pass

  def do_POST(self):
    server = self.server
    with server.lock:
      server.active += 1
    try:
      with contextlib.suppress(OSError):
        self._answer(server)
    finally:
      with server.lock:
        server.active -= 1

  def _answer(self, server):
    key = self.headers["Idempotency-Key"]
    request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    assert self.path == "/v1/chat/completions"
    fault = server.draw(key)
    answer = server.answer(request)
    if fault in ("429", "500"):
      answer = int(fault), b'{"error": {"message": "busy"}}', {"Retry-After": "0"}
    if fault == "wrong_language":
      answer = "Это серое видео без слов"
    said = f"answer {answer}" if isinstance(answer, str) else str(answer[0])
    said = fault if fault in ("hang", "truncated") else said
    with server.lock:
      server.log.append((time.monotonic(), key, self.headers["Authorization"], said))
    if fault == "hang":
      time.sleep(HANG_SECONDS)
    if isinstance(answer, str):
      choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
      answer = 200, json.dumps({"choices": [choice]}).encode(), {}
    status, body, headers = answer
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)
    self.close_connection = True
