"""Orbax checkpoints on S3: Orbax commits, deletes and opens `s3://` as it does `gs://` once `enable` was called.

Its own small files, such as the one that commits a checkpoint, then go through the file layer, which survives faults.

Orbax knows one object store, GCS: there it writes to the final folder and commits with a file, because a store cannot
rename. These functions let its tests for GCS include S3, and give TensorStore its S3 driver.
"""

import functools
import io
import os
from typing import IO, Any

from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from walt_t5x.files import clients, storage
from walt_t5x.files.paths import Address

_SCHEME = "s3://"


def _is_s3(path: Any) -> bool:
  return os.fspath(path).startswith(_SCHEME)


def kvstore(address: str) -> dict[str, Any]:
  """TensorStore's specification of an address; AWS_ENDPOINT_URL and AWS_REGION select another store than Amazon's."""
  bucket, _, key = address.removeprefix(_SCHEME).partition("/")
  found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
  region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
  chosen: dict[str, Any] = {"endpoint": os.environ.get("AWS_ENDPOINT_URL"), "aws_region": region}
  if "AWS_ACCESS_KEY_ID" in os.environ:
    # Otherwise TensorStore also looks for files of credentials, and logs an error for each that does not exist.
    chosen["aws_credentials"] = {"type": "environment"}
  return found | {name: value for name, value in chosen.items() if value}


class _Written(io.BytesIO):
  """A file that is written to an address when it is closed."""

  def __init__(self, address: str):
    super().__init__()
    self._address = address

  def close(self) -> None:
    if not self.closed:
      storage.write(self._address, self.getvalue())
    super().close()


def _open(path: storage.PathLike, mode: str) -> IO[Any]:
  if "w" not in mode:
    return Address(os.fspath(path)).open(mode)
  stream = _Written(os.fspath(path))
  return stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8")


@functools.cache
def enable() -> None:
  """Changes Orbax in this process."""
  in_gcs, spec, hierarchical = (
    gcs_utils.is_gcs_path,
    gcs_utils.get_kvstore_for_gcs,
    gcs_utils.is_hierarchical_namespace_enabled,
  )
  normalize, uses_driver = tensorstore_utils._normalize_path, tensorstore_utils._use_gcs_driver
  gcs_utils.is_gcs_path = lambda path: _is_s3(path) or in_gcs(path)
  gcs_utils.get_kvstore_for_gcs = lambda path: kvstore(path) if _is_s3(path) else spec(path)
  gcs_utils.is_hierarchical_namespace_enabled = lambda path: not _is_s3(path) and hierarchical(path)
  tensorstore_utils._use_gcs_driver = lambda path: _is_s3(path) or uses_driver(path)
  # `normpath` turns s3:// into s3:/.
  tensorstore_utils._normalize_path = lambda path: (
    _SCHEME + normalize(path.removeprefix(_SCHEME)) if _is_s3(path) else normalize(path)
  )
  stores: Any = backend.fsspec_backend
  stores.fs = lambda path: clients.file_system(os.fspath(path))
  stores.open, stores.exists, stores.isdir = _open, storage.exists, storage.is_folder
