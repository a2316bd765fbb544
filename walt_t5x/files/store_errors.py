"""What the errors of object stores mean to a user: what is missing, and what to set."""

import errno
import re

# Stores that show an object once all of it has arrived, and cannot rename.
OBJECT_STORES = ("gs", "gcs", "s3", "s3a", "az", "abfs", "hf")
_CREDENTIALS = {
  "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
  "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a store other than Amazon's",
}
# Errors of clients without credentials, by name, so that the clients are not imported.
_WITHOUT_CREDENTIALS = {
  "CredentialRetrievalError",
  "DefaultCredentialsError",
  "NoCredentialsError",
  "PartialCredentialsError",
  "ProfileNotFound",
  "RefreshError",
  "TokenRetrievalError",
}
# gcsfs names the listing of a bucket in the error, s3fs has the words of the store.
_NO_BUCKET = re.compile(r"(?:^|/)b/[^/?]+/o$|bucket does not exist", re.IGNORECASE)


class CannotWrite(OSError):
  """A write error that is independent of the row: a full disk, a quota, a folder without write permission."""


class StoreError(OSError):
  """A store has no such bucket, or rejects the credentials; the message says what to set."""


def is_object_store(path: str) -> bool:
  """Whether an address is in an object store."""
  return path.partition("://")[0] in OBJECT_STORES


def is_beyond_end(error: Exception) -> bool:
  """Whether a store has no bytes in the range that a read asked for."""
  return getattr(error, "code", None) == 416 or "range is not satisfiable" in str(error)


def cannot_write(path: str, error: OSError) -> CannotWrite:
  """The error of a write that a disk or store rejects."""
  said = str(error.strerror or error).removeprefix(f"cannot write {path}, ")
  if isinstance(error, StoreError):
    said = f"cannot write {error}"
  elif is_object_store(path):
    said = f"cannot write {path}: {said}; run the same command again: finished files are kept"
  else:
    said = (
      f"cannot write {path}: {said}; free some space or set a writable --output, and run the same command again: "
      "finished files are kept"
    )
  found = CannotWrite(said)
  found.strerror = error.strerror
  return found


def explained(path: str, error: Exception, *, writes: bool) -> Exception | None:
  """What an error of an object store means; None if nothing better than its own words is known.

  `writes` is whether the operation creates the object, which fails as missing only if its bucket is.
  """
  if not is_object_store(path) or isinstance(error, StoreError):
    return None
  scheme, _, rest = path.partition("://")
  bucket = f"{scheme}://{rest.partition('/')[0]}"
  said = " ".join(str(error).split())
  if isinstance(error, FileNotFoundError):
    if not (writes or _NO_BUCKET.search(said)):
      return FileNotFoundError(f"no file at {path}")
    return StoreError(
      f"{path}: the bucket {bucket} does not exist; create it, or correct the address"
      + (" or AWS_ENDPOINT_URL" if scheme.startswith("s3") else "")
    )
  credentials = _CREDENTIALS.get(scheme[:2], "those of the store")
  if type(error).__name__ in _WITHOUT_CREDENTIALS:
    return StoreError(f"{path}: no credentials for {bucket} ({said}); set {credentials}")
  denied = getattr(error, "code", None) in (401, 403) or said.startswith("Forbidden: ")
  if denied or isinstance(error, PermissionError) or getattr(error, "errno", 0) == errno.EACCES:
    return StoreError(
      f"{path}: {bucket} rejects the credentials ({said}); set ones that may access it: {credentials}"
    )
  return None
