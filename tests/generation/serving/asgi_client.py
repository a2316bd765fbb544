"""Sends requests to an ASGI application, as a server would pass them on, without a socket."""

import asyncio
import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Answer:
  """Status, headers (lowercase names) and body."""

  status: int
  headers: dict
  body: bytes

  def json(self):
    return json.loads(self.body)


def send(app, method, path, *, body=b"", headers=None, query="", complete=True, sent=None):
  """Sends one request; without `complete`, the client disconnects in the middle of the body.

  `sent` gets the messages of the application, also if it raises.
  """
  given = {"host": "127.0.0.1:8000", "content-length": str(len(body))} | (headers or {})
  scope = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": method,
    "scheme": "http",
    "path": path,
    "raw_path": path.encode(),
    "query_string": query.encode(),
    "root_path": "",
    "headers": [(k.encode(), v.encode()) for k, v in given.items() if v is not None],
    "client": ("127.0.0.1", 5000),
    "server": ("127.0.0.1", 8000),
  }
  # In parts, as they arrive.
  parts = [body[i : i + 2**16] for i in range(0, len(body), 2**16)] or [b""]
  messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
  if complete:
    messages[-1]["more_body"] = False
  else:
    messages.append({"type": "http.disconnect"})
  sent = [] if sent is None else sent

  async def receive():
    while not messages:
      await asyncio.sleep(1)
    return messages.pop(0)

  async def receive_answer(message):
    sent.append(message)

  asyncio.run(app(scope, receive, receive_answer))
  start = next(message for message in sent if message["type"] == "http.response.start")
  found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
  content = b"".join(message.get("body", b"") for message in sent)
  return Answer(start["status"], found, content)


def send_json(app, tree, **options):
  """Sends a JSON object, or text as it is, to create a video."""
  body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
  headers = {"content-type": "application/json"} | options.pop("headers", {})
  return send(app, "POST", "/v1/videos", body=body, headers=headers, **options)


def form(fields, files=(), *, boundary="frontier"):
  """Body and headers of a form; `files` are (field, content)."""
  parts = [(f'name="{name}"', str(value).encode()) for name, value in fields]
  parts += [(f'name="{name}"; filename="x.png"', content) for name, content in files]
  body = b""
  for described, content in parts:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {described}\r\n\r\n"
    body += head.encode() + content + b"\r\n"
  body += f"--{boundary}--\r\n".encode()
  return body, {"content-type": f"multipart/form-data; boundary={boundary}"}


def send_form(app, fields, files=(), **options):
  """Sends a form to create a video, as the package `openai` does."""
  body, headers = form(fields, files)
  return send(app, "POST", "/v1/videos", body=body, headers=headers, **options)
