"""A served page answers its own requests only, as an ASGI server would pass them on."""

import asyncio

import pytest

from walt_t5x.html.serving import Guard

PAGE = {"host": "127.0.0.1:7860"}


def answer(headers, *, host="127.0.0.1", path="/"):
  """The status of the answer; 200 is that of the page."""
  statuses = []

  async def page(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})

  async def send(message):
    if "status" in message:
      statuses.append(message["status"])

  pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
  guard = Guard(page, host=host, max_bytes=100, max_upload=1000)
  asyncio.run(guard({"type": "http", "path": path, "headers": pairs}, None, send))
  (status,) = statuses
  return status


@pytest.mark.parametrize(
  ("headers", "status"),
  [
    ({}, 200),
    ({"origin": "http://127.0.0.1:7860"}, 200),
    ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
    ({"host": "[::1]:7860"}, 200),
    ({"host": "localhost"}, 200),
    ({"host": "evil.example:7860"}, 403),
    ({"host": "localhost.evil.example"}, 403),
    ({"host": ""}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://127.0.0.1:8000"}, 403),
    ({"origin": "null"}, 403),
    ({"content-length": "100"}, 200),
    ({"content-length": "101"}, 413),
    ({"content-length": "-5"}, 413),
    ({"transfer-encoding": "chunked"}, 411),
  ],
)
def test_foreign_and_large_requests_are_rejected(headers, status):
  assert answer(PAGE | headers) == status


def test_uploads_have_their_own_limit():
  for length, status in ((1000, 200), (1001, 413)):
    given = PAGE | {"content-length": str(length)}
    assert answer(given, path="/gradio_api/upload") == status


def test_a_page_that_is_open_to_the_network_has_any_name_but_no_foreign_origin():
  own = {"host": "box.example:7860", "origin": "http://box.example:7860"}
  assert answer(own, host="0.0.0.0") == 200
  assert answer(own | {"origin": "http://evil.example"}, host="0.0.0.0") == 403
  assert answer(own, host="10.0.0.5") == 403
  assert answer({"host": "10.0.0.5:7860"}, host="10.0.0.5") == 200
