"""The client of GCS: that of gcsfs, with the retries and limits of `retries`, and answers that are complete."""

import asyncio
import base64
import contextlib
import json
from typing import Any

import aiohttp
import google_crc32c
from gcsfs.core import GCSFileSystem

from walt_t5x.files import retries

# Without gcsfs's retries, which have other pauses and leave out some errors.
_request_once: Any = GCSFileSystem._request.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]


class Gcs(GCSFileSystem):
  """gs:// and gcs:// without listings that are cached, because other workers write too."""

  def __init__(self, **settings: Any):
    timeout = aiohttp.ClientTimeout(
      total=None, sock_connect=retries.CONNECT, sock_read=retries.SILENCE
    )
    # The checksum of an upload is compared with that of the object.
    super().__init__(
      use_listings_cache=False, requests_timeout=timeout, consistency="md5", **settings
    )

  async def _request(self, method: str, path: str, *args: Any, **settings: Any) -> Any:
    asked = (settings.get("headers") or {}).get("Range")
    downloads = method == "GET" and "alt=media" in path

    async def call() -> Any:
      try:
        status, headers, info, content = await _request_once(self, method, path, *args, **settings)
      except Exception as error:
        if downloads and getattr(error, "code", None) == 416:
          return 416, {}, None, b""  # The range begins at the end.
        raise
      if downloads and asked:
        retries.check_range(content, asked=asked, answered=headers.get("Content-Range", ""))
      elif downloads:
        _check_object(content, headers)
      elif content.startswith(b"{"):
        _check_json(content)
      return status, headers, info, content

    data = settings.get("data")
    sends = None if data is None else len(data)
    if method == "DELETE" and "upload_id=" in path:
      # After an outage, the error of the upload is told, not that of its end.
      with contextlib.suppress(Exception):
        await asyncio.wait_for(retries.retried_request(call, sends=None), retries.SILENCE)
      return 499, {}, None, b""
    try:
      return await retries.retried_request(call, sends=sends)
    except FileNotFoundError as error:
      if data is not None and "upload_id=" in path:
        raise retries.Incomplete(f"the upload is gone: {error}") from error
      raise

  async def _info(self, path: str, generation: str | None = None, **settings: Any) -> Any:
    # That of gcsfs also lists the folder of this name, which may not exist, at the same time.
    path = str(self._strip_protocol(path)).rstrip("/")
    bucket, key, _ = self.split_path(path)
    if not key:
      return await super()._info(path, generation, **settings)
    with contextlib.suppress(FileNotFoundError):
      return await self._get_object(path)
    return await self._get_directory_info(path, bucket, key, generation)

  async def _put_file(self, lpath: str, rpath: str, **settings: Any) -> None:
    await super()._put_file(lpath, rpath, chunksize=retries.CHUNK, **settings)


def _check_json(content: bytes) -> None:
  try:
    json.loads(content)
  except ValueError as error:
    raise retries.Incomplete(f"got {len(content)} bytes that are not JSON") from error


def _check_object(content: bytes, headers: Any) -> None:
  """Raises `Incomplete` if an object differs from its checksum."""
  if headers.get("X-Goog-Stored-Content-Encoding", "identity") != "identity":
    return  # It was decompressed.
  hashes = dict(
    part.strip().split("=", 1) for part in headers.get("X-Goog-Hash", "").split(",") if part
  )
  found = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
  if hashes.get("crc32c", found) != found:
    raise retries.Incomplete(f"got {len(content)} bytes, whose checksum is not the object's")
