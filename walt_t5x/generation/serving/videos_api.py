"""The videos API in OpenAI's shape, without HTTP: fields of requests to jobs, jobs to JSON objects, and errors.

Source: https://platform.openai.com/docs/api-reference/videos, as the package `openai` 3.57 sends and reads it. `seed`,
`stage` and `extensions` are additions.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt_t5x.config.usage import closest
from walt_t5x.files.store_errors import CannotWrite
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.serving.clip_maker import MAX_EXTENSIONS, ClipMaker, FieldError
from walt_t5x.generation.serving.job_queue import (
  COMPLETED,
  FAILED,
  JobIsRunning,
  JobQueue,
  QueueFull,
  TrackedJob,
)

FIELDS = ("model", "prompt", "seconds", "size", "input_reference", "seed", "stage", "extensions")
MAX_LIMIT = 100
_INTEGERS = ("seed", "extensions")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
  """An answer that is an error.

  Attributes:
    status: the HTTP status.
    param: the field that is wrong, if it is one.
    code: a word for programs.
    headers: of the answer.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

  def body(self) -> dict[str, Any]:
    """The JSON object of the answer."""
    kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
    error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
    return {"error": error}


class VideosApi:
  """The calls of the API.

  Args:
    model: the name of the cascade in requests and answers.
  """

  def __init__(self, maker: ClipMaker, queue: JobQueue, samples: SampleFolder, *, model: str):
    self._maker, self._queue, self._samples, self.model = maker, queue, samples, model

  def create(self, fields: Mapping[str, Any], *, image: bytes | None = None) -> dict[str, Any]:
    """Accepts a request; when this returns, a kill does not lose it.

    Args:
      fields: of a JSON object, or of a form, of which `form_fields` makes one.
      image: the file that was uploaded as `input_reference`.

    Raises:
      ApiError: 400 for a wrong field, 404 for another model, 429 if too many jobs wait, 503 if the disk is full.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given:
      if name not in FIELDS:
        known = closest(name[:40], FIELDS) or f"one of {', '.join(FIELDS)}"
        raise ApiError(
          400,
          f"{name[:40]}: unknown field, expected {known}",
          param=name[:40],
          code="unknown_field",
        )
    prompt = given.get("prompt", "")
    if not isinstance(prompt, str):
      raise _wrong("prompt", f"got a {type(prompt).__name__}, expected text")
    if given.get("model", self.model) != self.model:
      raise ApiError(
        404,
        f"model: got {str(given['model'])[:40]!r}, expected {self.model!r}, the only one that is served",
        param="model",
        code="model_not_found",
      )
    if "input_reference" in given:
      image = _image_of(given["input_reference"])
    stage = self._stage(given)
    try:
      request = self._maker.checked(
        prompt,
        seed=given.get("seed", 0),
        stage=stage,
        extensions=self._extensions(given),
        image=image,
      )
      return self.described(self._queue.submit(request, image=image))
    except FieldError as error:
      name = "input_reference" if error.field == "image" else error.field
      message = str(error).removeprefix(f"{error.field}: ")
      raise _wrong(name, message) from error
    except QueueFull as error:
      headers = {"retry-after": str(math.ceil(error.retry_after))}
      raise ApiError(429, str(error), code="queue_full", headers=headers) from error
    except CannotWrite as error:
      raise ApiError(503, "the job cannot be stored: the disk is full or read-only") from error
    except ValueError as error:
      raise ApiError(400, str(error)) from error

  def retrieve(self, id: str) -> dict[str, Any]:
    """A job. Raises ApiError: 404 if there is none of this name."""
    return self.described(self._find(id))

  def list(self, query: Mapping[str, str]) -> dict[str, Any]:
    """Some of the jobs: `limit` of them in `order` ("desc", the newest first, or "asc") after the job `after`.

    Raises:
      ApiError: 400 for a wrong value, 404 if `after` does not exist.
    """
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
      raise _wrong("order", f"got {order[:40]!r}, expected 'asc' or 'desc'")
    if not re.fullmatch(r"[0-9]{1,9}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
      raise _wrong("limit", f"got {limit[:40]!r}, expected a number from 1 to {MAX_LIMIT}")
    jobs = self._queue.jobs()
    if order == "desc":
      jobs.reverse()
    if "after" in query:
      ids = [one.job.id for one in jobs]
      if query["after"] not in ids:
        raise _missing(query["after"])
      jobs = jobs[1 + ids.index(query["after"]) :]
    data = [self.described(one) for one in jobs[: int(limit)]]
    return {
      "object": "list",
      "data": data,
      "first_id": data[0]["id"] if data else None,
      "last_id": data[-1]["id"] if data else None,
      "has_more": len(jobs) > len(data),
    }

  def content(self, id: str, query: Mapping[str, str]) -> Path:
    """The MP4 file of a completed job: of its last stage, or of the stage `variant`.

    Raises:
      ApiError: 404 if the job does not exist, 400 for another `variant`, 409 if it is not completed.
    """
    tracked = self._find(id)
    if tracked.status != COMPLETED:
      raise ApiError(409, f"the video is {tracked.status}, expected {COMPLETED}", code="not_ready")
    last = tracked.job.request.stage
    stages = self._maker.stages[: 1 + self._maker.stages.index(last)]
    variant = query.get("variant", "video")
    if variant not in ("video", *stages):
      expected = " or ".join(map(repr, ("video", *stages)))
      raise _wrong("variant", f"got {variant[:40]!r}, expected {expected}")
    stage = last if variant == "video" else variant
    return Path(self._samples.path / f"{tracked.job.index:05d}_{stage}.mp4")

  def delete(self, id: str) -> dict[str, Any]:
    """Deletes a job and its files.

    Raises:
      ApiError: 404 if the job does not exist, 409 while its clip is being generated.
    """
    try:
      self._queue.delete(self._find(id))
    except JobIsRunning as error:
      raise ApiError(409, str(error), code="in_progress") from error
    return {"id": id, "object": "video.deleted", "deleted": True}

  def models(self) -> dict[str, Any]:
    """The served model, with the sizes and durations that it makes."""
    extensions = range(1 + (MAX_EXTENSIONS if self._maker.takes_frames else 0))
    model = {
      "id": self.model,
      "object": "model",
      "created": 0,
      "owned_by": "walt_t5x",
      "sizes": {stage: self._maker.size(stage) for stage in self._maker.stages},
      "seconds": [self._seconds(count) for count in extensions],
    }
    return {"object": "list", "data": [model]}

  def described(self, tracked: TrackedJob) -> dict[str, Any]:
    """A job as a JSON object."""
    job, request = tracked.job, tracked.job.request
    known = request.stage in self._maker.stages
    error = (
      {"code": "generation_failed", "message": job.error} if tracked.status == FAILED else None
    )
    return {
      "id": job.id,
      "object": "video",
      "model": self.model,
      "status": tracked.status,
      "progress": int(100 * tracked.share),
      "created_at": int(job.created),
      "completed_at": int(tracked.ended) if tracked.status == COMPLETED and tracked.ended else None,
      "expires_at": None,
      "prompt": request.prompt,
      "seconds": self._seconds(request.extensions),
      "size": self._maker.size(request.stage) if known else "",
      "error": error,
      "remixed_from_video_id": None,
      "seed": request.seed,
      "stage": request.stage,
      "extensions": request.extensions,
    }

  def _find(self, id: str) -> TrackedJob:
    tracked = self._queue.find(id)
    if tracked is None:
      raise _missing(id)
    return tracked

  def _seconds(self, extensions: int) -> str:
    return f"{self._maker.seconds(extensions):g}"

  def _stage(self, given: Mapping[str, Any]) -> str:
    """The stage of a request: that of its name or size, the last one by default."""
    stages, sizes = self._maker.stages, [self._maker.size(stage) for stage in self._maker.stages]
    stage, size = given.get("stage"), given.get("size")
    if stage is not None and stage not in stages:
      raise _wrong("stage", f"got {str(stage)[:40]!r}, expected one of {stages}")
    of_stage = [stage] if stage else stages
    fits = [one for one in of_stage if size in (None, sizes[stages.index(one)])]
    if not fits:
      expected = sizes[stages.index(stage)] if stage else f"one of {sizes}"
      raise _wrong("size", f"got {str(size)[:40]!r}, expected {expected}")
    return fits[-1]

  def _extensions(self, given: Mapping[str, Any]) -> Any:
    """The number of extensions of a request: `extensions`, or that which lasts `seconds`."""
    if "seconds" not in given:
      return given.get("extensions", 0)
    most = MAX_EXTENSIONS if self._maker.takes_frames else 0
    choices = [given["extensions"]] if "extensions" in given else range(1 + most)
    known = {count: self._seconds(count) for count in choices if count in range(1 + MAX_EXTENSIONS)}
    try:
      seconds = float(given["seconds"])
    except (TypeError, ValueError, OverflowError):
      seconds = math.nan
    for count, text in known.items():
      # Half of a frame.
      if abs(seconds - float(text)) * self._maker.frames(count) < float(text) / 2:
        return count
    expected = f"one of {list(known.values())}"
    raise _wrong("seconds", f"got {str(given['seconds'])[:40]!r}, expected {expected}")


def form_fields(fields: Mapping[str, str]) -> dict[str, Any]:
  """The fields of a form as those of a JSON object: numbers where numbers are expected."""
  found: dict[str, Any] = dict(fields)
  for name in _INTEGERS:
    if re.fullmatch(r"-?[0-9]{1,20}", found.get(name, "")):
      found[name] = int(found[name])
  return found


def _image_of(reference: Any) -> bytes:
  """The image of `input_reference` in a JSON object: {"image_url": "data:image/png;base64,..."}."""
  url = reference.get("image_url") if isinstance(reference, dict) and len(reference) == 1 else None
  head = _DATA_URL.match(url) if isinstance(url, str) else None
  if isinstance(url, str) and head:
    try:
      return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
      raise _wrong("input_reference", f"is not valid base64: {error}") from error
  raise _wrong(
    "input_reference",
    "expected an uploaded file, or an object with an image_url that starts with data:image/png;base64, (no address is "
    "fetched)",
  )


def _missing(id: str) -> ApiError:
  return ApiError(404, f"no video {id[:60]!r}", param="video_id", code="not_found")


def _wrong(param: str, problem: str) -> ApiError:
  return ApiError(400, f"{param}: {problem}", param=param, code="invalid_value")
