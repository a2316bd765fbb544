"""The file systems of addresses: clients of GCS and S3 that survive faults, fsspec for the others."""

import functools
import os
from typing import Any


def file_system(path: str) -> Any:
  """The file system of an address. Listings are not cached, because other workers write too."""
  scheme = path.partition("://")[0]
  try:
    if scheme in ("gs", "gcs", "s3", "s3a"):
      return _client(scheme, os.getpid())
    import fsspec

    return fsspec.core.url_to_fs(path, use_listings_cache=False)[0]
  except ImportError as error:
    raise ValueError(
      f"{path}: {error} (pip install -r requirements-stores.lock; docs/stores.md)"
    ) from error


@functools.cache
def _client(scheme: str, process: int) -> Any:
  """One per process: fsspec makes one per thread, which costs up to a second and a pool of connections."""
  if scheme in ("gs", "gcs"):
    from walt_t5x.files.gcs import Gcs

    return Gcs(skip_instance_cache=True)
  from walt_t5x.files.s3 import S3

  return S3(skip_instance_cache=True)
