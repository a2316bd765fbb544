"""The file layer on stores with faults: what it does on a local disk, or one clear error."""

import contextlib
import itertools
import re
import threading
import time

import pytest
from etils import epath

from tests.stores import faults, operations, servers
from walt_t5x.engine import orbax_s3
from walt_t5x.files import clients, patterns, retries, storage

# Seconds. Longer than a client waits: a request that is forwarded after the client has repeated it may undo later ones.
STALL = 20.0
RATES = dict.fromkeys(faults.KINDS, 0.05) | {"stall": 0.005, "late": 0.005}
# Without faults.
MOST_REQUESTS = {
  "write": 1, "write over another": 1, "write, empty": 1, "write, large": 5, "write_json": 1, "read": 1,
  "read, empty": 1, "read, large": 2, "read, limited": 1, "read, limited, empty": 1, "read, no file": 1,
  "read_range": 1, "read_json": 1, "open_raw": 6, "exists": 1, "exists, folder": 2, "exists, no file": 3,
  "size": 1, "names": 1, "names, no folder": 2, "folders": 1, "match": 5, "delete": 1, "delete, no file": 1,
  "rename": 3, "rename, no file": 2, "rename_folder": 10, "create": 1, "create, exists": 2, "lock": 11,
}  # fmt: skip


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request):
  with servers.SERVERS[request.param]() as found:
    yield found


@pytest.fixture
def behind(server, monkeypatch, request):
  """A function: a folder of the store behind a proxy with these faults, for a `with`."""
  for name, value in {
    "FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.05, "CONNECT": 0.4, "SILENCE": 1.0, "CHUNK": operations.CHUNK,
  }.items():  # fmt: skip
    monkeypatch.setattr(retries, name, value)
  numbers = itertools.count()

  @contextlib.contextmanager
  def make(found):
    with faults.proxied(server, found) as proxy:
      for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
      clients._client.cache_clear()
      # A name that is the same in each run, which has the same faults then.
      yield f"{server.address}/{request.node.name.replace('[', '-').rstrip(']')}-{next(numbers)}"
    clients._client.cache_clear()

  return make


@pytest.fixture
def quiet(behind, monkeypatch):
  """A folder of a store without faults, and the proxy's counts."""
  monkeypatch.setattr(retries, "SILENCE", 30.0)
  found = faults.Faults()
  with behind(found) as folder:
    yield folder, found


def test_a_storm_of_faults_changes_nothing(behind, tmp_path):
  expected = operations.storm(str(tmp_path), 60, seed=1)
  found = faults.Faults(RATES, seed=1, stall=STALL)
  with behind(found) as folder:
    assert operations.storm(folder, 60, seed=1) == expected
  assert found.injected() > 30


def test_each_operation_survives_the_failure_of_each_request(behind, tmp_path):
  kinds = [kind for kind in faults.KINDS if kind not in ("stall", "late")]
  rates = dict.fromkeys(kinds, 1 / len(kinds))
  found = faults.Faults(seed=2, most=1)
  with behind(found) as folder:
    for name, operation in operations.OPERATIONS.items():
      results = []
      for here in (f"{tmp_path}/{name}", f"{folder}/{name}"):
        operations.put(here, operation.files)
        found.rates = rates
        answered = operations.result(operation.act, here)
        found.rates = {}
        results.append((answered, operations.contents(here)))
      assert results[0] == results[1], name
  assert found.injected() > 20


@pytest.mark.parametrize("kind", ["shortened", "truncated"])
def test_half_an_object_is_not_taken_for_an_object(behind, kind):
  found = faults.Faults()
  with behind(found) as folder:
    for content in (operations.SMALL, operations.LARGE):
      storage.write(f"{folder}/a", content)
      reads = (
        lambda: storage.read(f"{folder}/a"),
        lambda: storage.read(f"{folder}/a", max_bytes=len(content)),  # noqa: B023
        lambda: storage.read_range(f"{folder}/a", 0, len(content) + 1),  # noqa: B023
        lambda: storage.open_raw(f"{folder}/a").read(),
      )
      for read in reads:
        before = found.injected()
        found.single, found.matched = (kind, "^GET (object|download) .*a$", 1), 0
        assert read() == content
        assert found.injected() == before + 1


def test_a_stalled_request_is_repeated(behind):
  for kind in ("stall", "late"):
    found = faults.Faults(single=(kind, "", 1), stall=STALL)
    with behind(found) as folder:
      began = time.monotonic()
      storage.write(f"{folder}/a", b"1")
      assert storage.read(f"{folder}/a") == b"1"
      assert time.monotonic() - began < 10 and found.injected() == 1


@pytest.mark.parametrize("number", [2, 3, 4])
def test_an_upload_whose_part_or_end_has_no_answer_is_complete(behind, number):
  pattern = "PUT part|POST chunk|end of parts"
  with behind(faults.Faults(single=("lost", pattern, number))) as folder:
    storage.write(f"{folder}/a", operations.LARGE)
    assert storage.read(f"{folder}/a") == operations.LARGE


def test_an_upload_that_the_store_has_forgotten_is_repeated(server, behind, monkeypatch):
  if not server.address.startswith("s3://"):
    pytest.skip("fake-gcs-server forgets uploads, SeaweedFS does not")
  from s3fs import S3FileSystem

  call, forgotten = S3FileSystem._call_s3, []

  async def forget(self, method, *parts, **settings):
    answer = await call(self, method, *parts, **settings)
    if method == "complete_multipart_upload" and not forgotten:
      forgotten.append(method)
      raise FileNotFoundError("NoSuchUpload")
    return answer

  monkeypatch.setattr(S3FileSystem, "_call_s3", forget)
  with behind(faults.Faults()) as folder:
    storage.write(f"{folder}/a", operations.LARGE)
    assert forgotten and storage.read(f"{folder}/a") == operations.LARGE


def test_one_of_several_creates_a_file(behind):
  rates = dict.fromkeys(("lost", "reset", "503", "cut"), 0.15)
  with behind(faults.Faults(rates, seed=3)) as folder:
    for number in range(4):
      path, barrier = f"{folder}/{number}", threading.Barrier(5)

      def create(mark, path=path, barrier=barrier):
        barrier.wait()
        return storage.create(path, mark)

      marks = [str(i).encode() for i in range(5)]
      created = list(storage.for_each(create, marks))
      assert sorted(created) == [False] * 4 + [True]
      assert storage.read(path) == marks[created.index(True)]


def test_an_object_that_is_replaced_is_read_as_one_of_its_versions(behind):
  rates = dict.fromkeys(("shortened", "truncated", "reset"), 0.2)
  with behind(faults.Faults(rates, seed=4)) as folder:
    path, versions, done = f"{folder}/a", {b"1" * 50_000, b"2" * 80_000, b"3"}, threading.Event()
    storage.write(path, b"3")

    def replace():
      for version in itertools.cycle(versions):
        storage.write(path, version)
        if done.is_set():
          return

    thread = threading.Thread(target=replace)
    thread.start()
    found = {storage.read(path, max_bytes=limit) for limit in (None, 10**6) * 12}
    done.set()
    thread.join()
    assert found <= versions and len(found) > 1


@pytest.mark.parametrize("kind", ["503", "stall"])
def test_an_endless_fault_ends_in_one_error_that_names_it(behind, monkeypatch, kind):
  monkeypatch.setattr(retries, "DEADLINE", 0.4)
  monkeypatch.setattr(retries, "SILENCE", 0.2)
  with behind(faults.Faults({kind: 1.0}, stall=STALL)) as folder:

    def error(operation):
      began = time.monotonic()
      told = rf"cannot \w+(?: for)? {folder}.*[,:] (\d+) attempts? within 0 seconds"
      with pytest.raises(OSError, match=told) as found:
        operation.act(folder)
      # More than two: those of the request, not those of the operation, which has not been repeated.
      assert int(re.search(told, str(found.value))[1]) > 2 or kind == "stall"
      return time.monotonic() - began

    assert max(storage.for_each(error, operations.OPERATIONS.values())) < 10


def test_requests_are_few(quiet):
  folder, found = quiet
  for name, operation in operations.OPERATIONS.items():
    operations.put(f"{folder}/{name}", operation.files)
    before = found.requests()
    operations.result(operation.act, f"{folder}/{name}")
    assert found.requests() - before <= MOST_REQUESTS[name], name


def test_listings_take_as_many_requests_for_more_files(quiet):
  folder, found = quiet
  counts = []
  for below, files in (("few", 2), ("many", 12)):
    for number in range(files):
      storage.write(f"{folder}/{below}/{number}/a", b"")
    before = found.requests()
    assert storage.folders(f"{folder}/{below}") and list(patterns.match(f"{folder}/{below}/0/*"))
    counts.append(found.requests() - before)
  assert counts[0] == counts[1]
  # For a folder that does not exist, the one above it, which may be large, is not listed.
  before = found.counts["GET", "list", faults.DONE]
  assert storage.names(f"{folder}/many/none") == []
  assert found.counts["GET", "list", faults.DONE] == before + 1


def test_a_listing_that_lags_loses_no_file(behind):
  with behind(faults.Faults(lag=0.4)) as folder:
    storage.write(f"{folder}/a/old", b"old")
    time.sleep(0.5)
    storage.write(f"{folder}/a/new", b"new")
    assert storage.names(f"{folder}/a") == ["old"] and storage.exists(f"{folder}/a/new")
    storage.rename_folder(f"{folder}/a", f"{folder}/b")
    time.sleep(0.5)
    assert operations.contents(folder) == {"a/new": b"new", "b/old": b"old"}


def test_a_marker_of_a_folder_is_not_in_it(quiet):
  folder, _ = quiet
  storage.write(f"{folder}/a/b", b"1")
  storage._remote(folder).pipe_file(f"{folder}/a/", b"")
  assert storage.names(f"{folder}/a") == ["b"] and storage.folders(f"{folder}/a") == []
  assert storage.folders(folder) == ["a"] and storage.names(folder) == []


def test_a_file_of_orbax_survives_the_failure_of_each_request(behind):
  orbax_s3.enable()
  found = faults.Faults()
  with behind(found) as folder:
    path = epath.Path(folder) / "_CHECKPOINT_METADATA"
    for kind in ("429", "503", "reset", "lost", "truncated", "shortened", "cut"):
      for act, number in itertools.product((path.write_text, path.read_text, path.exists), (1, 2)):
        found.single, found.matched = (kind, "", number), 0
        act(*[kind * 100] * (act == path.write_text))
        assert path.read_text() == kind * 100
  assert found.injected() > 20
