"""What errors of the clients of object stores mean: those that gcsfs and s3fs raise for real buckets."""

import errno

import pytest

from walt_t5x.files import retries, store_errors


def _named(name, **fields):
  return type(name, (Exception,), fields)


@pytest.mark.parametrize(
  "path, error, said",
  [
    ("gs://b/a", _named("HttpError", code=401)("Anonymous caller"), "gcloud auth application-default login"),
    ("gs://b/a", OSError("Forbidden: https://x\nNo access"), "GOOGLE_APPLICATION_CREDENTIALS"),
    ("gs://b/a", _named("DefaultCredentialsError")("not found"), "no credentials for gs://b"),
    ("s3://b/a", PermissionError("Access Denied"), "s3://b rejects the credentials (Access Denied)"),
    ("s3://b/a", OSError(errno.EACCES, "Access Denied"), "AWS_SECRET_ACCESS_KEY"),
    ("s3://b/a", _named("NoCredentialsError")("Unable to locate"), "no credentials for s3://b"),
    ("s3://b/a", FileNotFoundError("The specified bucket does not exist"), "the bucket s3://b does not exist"),
    ("gs://b/a", FileNotFoundError("b/b/o"), "the bucket gs://b does not exist"),
    ("gs://b/a", FileNotFoundError("https://x/b/b/o/a?alt=media"), "no file at gs://b/a"),
    ("s3://b/a", FileNotFoundError("b/a"), "no file at s3://b/a"),
  ],
)  # fmt: skip
def test_the_message_is_a_line_that_says_what_to_set(path, error, said):
  def fail():
    raise error

  with pytest.raises(OSError) as found:
    retries.retried("read", path, fail)
  message = str(found.value)
  assert said in message and path in message and "\n" not in message


def test_other_errors_keep_their_words():
  for path in ("gs://b/a", "memory://b/a"):
    assert store_errors.explained(path, ValueError("Bad Request"), writes=False) is None
  assert store_errors.explained("memory://b/a", PermissionError("no"), writes=False) is None


def test_an_object_that_cannot_be_created_has_no_bucket():
  error = FileNotFoundError("https://x/upload/storage/v1/b/b/o")
  found = store_errors.explained("gs://b/a", error, writes=True)
  assert isinstance(found, OSError) and "the bucket gs://b does not exist" in str(found)
  written = store_errors.cannot_write("gs://b/a", found)
  assert str(written).startswith("cannot write gs://b/a: the bucket gs://b does not exist")
  assert "free some space" in str(store_errors.cannot_write("a", OSError(errno.ENOSPC, "full")))
