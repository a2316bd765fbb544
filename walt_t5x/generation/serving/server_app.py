"""The videos API over HTTP, a Starlette application."""

import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# Optional, as the extra [serve].
from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]
from starlette.datastructures import UploadFile  # pyright: ignore[reportMissingImports]
from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
from starlette.requests import (  # pyright: ignore[reportMissingImports]
  ClientDisconnect,
  Request,
)
from starlette.responses import (  # pyright: ignore[reportMissingImports]
  FileResponse,
  JSONResponse,
  PlainTextResponse,
  Response,
)
from starlette.routing import Route  # pyright: ignore[reportMissingImports]

from walt_t5x.generation.serving.clip_maker import MAX_IMAGE_BYTES
from walt_t5x.generation.serving.server_metrics import CONTENT_TYPE, ServerMetrics
from walt_t5x.generation.serving.videos_api import FIELDS, ApiError, VideosApi, form_fields
from walt_t5x.html.serving import Guard

# An image in base64, in a JSON object.
MAX_BODY = MAX_IMAGE_BYTES * 4 // 3 + (1 << 20)
_OPEN = "/healthz"


def build_app(api: VideosApi, metrics: ServerMetrics, *, host: str, token: str | None) -> Starlette:
  """The application: /v1/videos, /v1/models, /metrics and /healthz.

  Args:
    host: address that the server listens on, see `Guard`.
    token: what requests have to present, except those to /healthz; None for no check.
  """

  async def create(request: Request) -> Response:
    fields, image = await _read_body(request)
    return JSONResponse(await run_in_threadpool(api.create, fields, image=image))

  async def retrieve(request: Request) -> Response:
    return JSONResponse(api.retrieve(request.path_params["id"]))

  async def list_videos(request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(api.list, request.query_params))

  async def content(request: Request) -> Response:
    file = api.content(request.path_params["id"], request.query_params)
    if not await run_in_threadpool(Path.exists, file):
      raise ApiError(404, "the file was deleted", code="not_found")
    return FileResponse(file, media_type="video/mp4", filename=file.name)

  async def delete(request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(api.delete, request.path_params["id"]))

  async def models(request: Request) -> Response:
    return JSONResponse(api.models())

  async def figures(request: Request) -> Response:
    return Response(await run_in_threadpool(metrics.text), media_type=CONTENT_TYPE)

  async def health(request: Request) -> Response:
    return PlainTextResponse("ok\n")

  one = "/v1/videos/{id}"
  middleware = [
    Middleware(Guard, host=host, max_bytes=MAX_BODY, max_upload=MAX_BODY, answer=_json_answer)
  ]
  if token:
    middleware.append(Middleware(_BearerToken, token=token))
  return Starlette(
    routes=[
      Route("/v1/videos", create, methods=["POST"]),
      Route("/v1/videos", list_videos, methods=["GET"]),
      Route(one, retrieve, methods=["GET"]),
      Route(one, delete, methods=["DELETE"]),
      Route(f"{one}/content", content, methods=["GET"]),
      Route("/v1/models", models, methods=["GET"]),
      Route("/metrics", figures, methods=["GET"]),
      Route(_OPEN, health, methods=["GET"]),
    ],
    middleware=middleware,
    exception_handlers={
      ApiError: _error,
      HTTPException: _http_error,
      ClientDisconnect: _disconnected,
      500: _bug,
    },
  )


class _BearerToken:
  """ASGI middleware that answers 401 to requests without the token."""

  def __init__(self, app: Callable[..., Awaitable[None]], *, token: str):
    self._app, self._expected = app, f"Bearer {token}".encode()

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] != _OPEN:
      given = dict(scope["headers"]).get(b"authorization", b"")
      # In a time that does not depend on how much of the token is right.
      if not hmac.compare_digest(given, self._expected):
        problem = ApiError(
          401,
          "expected the header Authorization: Bearer TOKEN with the token of this server",
          code="invalid_api_key",
          headers={"www-authenticate": "Bearer"},
        )
        await _response(problem)(scope, receive, send)
        return
    await self._app(scope, receive, send)


async def _read_body(request: Request) -> tuple[dict[str, Any], bytes | None]:
  """The fields of a request and the uploaded image, from a JSON object or a form."""
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind == "application/json":
    body = await request.body()
    return await run_in_threadpool(_parsed, body), None
  if kind != "multipart/form-data":
    message = (
      f"got the Content-Type {kind[:60]!r}, expected application/json or multipart/form-data"
    )
    raise ApiError(415, message, code="unsupported_media_type")
  # The parser drops a last part that is cut off.
  if not (await request.body()).rstrip().endswith(b"--"):
    raise ApiError(400, "the form ends before its last boundary", code="invalid_form")
  limits = {"max_files": 1, "max_fields": 2 * len(FIELDS), "max_part_size": MAX_BODY}
  fields: dict[str, str] = {}
  image = None
  async with request.form(**limits) as form:
    for name, value in form.multi_items():
      if name in fields or (name == "input_reference" and image is not None):
        raise ApiError(400, f"{name[:40]}: given twice", param=name[:40], code="invalid_value")
      if not isinstance(value, UploadFile):
        fields[name] = value
      elif name == "input_reference":
        image = await value.read()
      else:
        raise ApiError(400, f"{name[:40]}: got a file, expected text", param=name[:40])
  return form_fields(fields), image


def _parsed(body: bytes) -> dict[str, Any]:
  """The JSON object of a body."""
  try:
    found = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise ApiError(400, "the body is not JSON", code="invalid_json") from error
  if not isinstance(found, dict):
    raise ApiError(400, "the body is JSON, expected an object", code="invalid_json")
  return found


def _response(error: ApiError) -> Response:
  # In ASCII: what it quotes may be half of a surrogate pair.
  body, kind = json.dumps(error.body()), "application/json"
  return Response(body, status_code=error.status, headers=error.headers, media_type=kind)


async def _error(request: Request, error: ApiError) -> Response:
  return _response(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
  """Answers of the framework: no such path, no such method, a form that is damaged."""
  headers = dict(error.headers or {})
  return _response(ApiError(error.status_code, str(error.detail), headers=headers))


async def _disconnected(request: Request, error: ClientDisconnect) -> Response:
  return Response(status_code=400)


async def _bug(request: Request, error: Exception) -> Response:
  return _response(ApiError(500, "the server has a problem; its log has the details"))


def _json_answer(status: int, text: str) -> tuple[str, bytes]:
  return "application/json", json.dumps(ApiError(status, text).body()).encode()
