"""The client of S3: that of s3fs, with the retries and limits of `retries`, and answers that are complete."""

import asyncio
import contextlib
import io
import os
from typing import Any

from s3fs import S3FileSystem

from walt_t5x.files import retries


class S3(S3FileSystem):
  """s3:// and s3a:// without listings that are cached, because other workers write too."""

  retries = 1  # of s3fs, which has other pauses and leaves out some errors

  def __init__(self, **settings: Any):
    config = {
      "connect_timeout": retries.CONNECT,
      "read_timeout": retries.SILENCE,
      # All threads share it.
      "max_pool_connections": 64,
      "retries": {"total_max_attempts": 1},
    }
    super().__init__(use_listings_cache=False, config_kwargs=config, **settings)

  async def _call_s3(self, method: str, *parts: Any, **settings: Any) -> Any:
    once = super()._call_s3

    async def call() -> Any:
      asked = settings.get("Range")
      try:
        answer = await once(method, *parts, **settings)
      except OSError as error:
        if asked and "InvalidRange" in str(error.__cause__):
          return {"Body": _Body(b"")}  # The range begins at the end.
        if "IfNoneMatch" in settings and "PreconditionFailed" in str(error.__cause__):
          raise FileExistsError(settings["Key"]) from error
        raise
      if method == "get_object":
        async with answer["Body"] as stream:
          content = await stream.read()
        if asked:
          retries.check_range(content, asked=asked, answered=answer.get("ContentRange", ""))
        elif not answer["ResponseMetadata"].get("ChecksumAlgorithm"):
          # Without the checksum of an object, such as one that was uploaded in parts, botocore compares nothing.
          size = (await once("head_object", Bucket=settings["Bucket"], Key=settings["Key"]))[
            "ContentLength"
          ]
          if len(content) != size:
            raise retries.Incomplete(f"got {len(content)} bytes, expected {size}")
        answer["Body"] = _Body(content)
      return answer

    sends = len(settings["Body"]) if "Body" in settings else None
    try:
      return await retries.retried_request(call, sends=sends)
    except FileNotFoundError as error:
      if "UploadId" in settings:
        raise retries.Incomplete(f"the upload is gone: {error}") from error
      raise

  async def _cat_file(self, path: str, start: Any = None, end: Any = None, **settings: Any) -> Any:
    # With one request, an object that is replaced meanwhile is read as it was or as it is.
    return await super()._cat_file(path, start=start, end=end, max_concurrency=1, **settings)

  async def _put_file(self, lpath: str, rpath: str, **settings: Any) -> None:
    # At most 10,000 parts.
    chunk = max(retries.CHUNK, -(-os.path.getsize(lpath) // 10_000))
    await super()._put_file(lpath, rpath, chunksize=chunk, **settings)

  async def _ls(self, path: str, detail: bool = False, **settings: Any) -> list[Any]:
    # That of s3fs also lists the parent of a folder that does not exist.
    found: Any = await self._lsdir(str(self._strip_protocol(path)).rstrip("/"))
    if not found:
      raise FileNotFoundError(path)
    return found if detail else [one["name"] for one in found]

  async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
    # After an outage, the error of the upload is told, not that of its end.
    with contextlib.suppress(Exception):
      await asyncio.wait_for(super()._abort_mpu(bucket, key, mpu), retries.SILENCE)


class _Body(io.BytesIO):
  """The body of an answer that has arrived."""

  async def read(self, size: int = -1) -> bytes:
    return super().read(size)
