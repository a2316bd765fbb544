"""The program of the server: which commands it rejects before anything is loaded, and how it ends."""

import asyncio
import os
import re
import signal
import threading
import time
import urllib.request

import pytest

from tests import programs
from tests.generation.serving.plain_maker import make_queue, request
from walt_t5x import serve
from walt_t5x.generation.serving.job_queue import COMPLETED, QUEUED

SERVE = ("walt_t5x.serve", "--preset=shapes")


@pytest.mark.parametrize(
  ("host", "loopback"),
  [
    ("127.0.0.1", True),
    ("127.8.8.8", True),
    ("localhost", True),
    ("::1", True),
    ("0.0.0.0", False),
    ("::", False),
    ("10.0.0.5", False),
    ("localhost.example", False),
    ("", False),
  ],
)
def test_only_addresses_of_this_machine_need_no_token(host, loopback):
  assert serve.is_loopback(host) is loopback


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--output=o", "--host=0.0.0.0"], r"export WALT_SERVE_TOKEN=\$\(openssl rand -hex 32\)"),
    (["--output=gs://bucket/served"], "expected a folder on a local disk"),
    ([], "--output is missing"),
  ],
)
def test_a_wrong_command_is_told_what_to_set(flags, message):
  done = programs.run(*SERVE, *flags, environment={"WALT_SERVE_TOKEN": " "})
  assert done.returncode == 2 and re.search(message, done.stderr)
  assert "Traceback" not in done.stderr


def test_an_address_in_use_is_an_error():
  with serve.listening("127.0.0.1", 0) as found, pytest.raises(OSError):
    serve.listening("127.0.0.1", found.getsockname()[1])


def test_sigterm_answers_until_then_finishes_the_batch_and_keeps_the_rest(tmp_path):
  pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra [serve]")
  queue, maker = make_queue(tmp_path, batch_size=2, held=True)
  jobs = [queue.submit(request()) for _ in range(5)]
  seen = []

  async def application(scope, receive, send):
    """The second request gets a SIGTERM, and is answered once no batch will be started."""
    if scope["path"] == "/terminate":
      os.kill(os.getpid(), signal.SIGTERM)
      end = time.monotonic() + 5
      while not queue._stopping and time.monotonic() < end:
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"stops" if queue._stopping else b"runs"})

  def client(port):
    maker.started.acquire()
    for path in ("", "terminate"):
      with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
        seen.append(answer.read())
    maker.release.release(5)

  with serve.listening("127.0.0.1", 0) as found:
    threading.Thread(target=client, args=[found.getsockname()[1]], daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    try:
      serve.serve(application, queue, found)
    finally:
      signal.signal(signal.SIGTERM, before)
  assert seen == [b"runs", b"stops"]
  assert [one.status for one in jobs] == [COMPLETED] * 2 + [QUEUED] * 3
