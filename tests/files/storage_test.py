"""The file layer: the same laws on a local disk and on fsspec's memory://."""

import errno
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid

import fsspec
import numpy as np
import pytest
import safetensors.numpy
from fsspec.implementations.memory import MemoryFileSystem

from walt_t5x.files import local_folders, mirror, patterns, retries, storage, tensors
from walt_t5x.files.damage import Damaged


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
  """A folder that does not exist yet."""
  if request.param == "local":
    return str(tmp_path / "out")
  return f"memory://{uuid.uuid4().hex}/out"


@pytest.fixture
def pauses(monkeypatch):
  """The pauses between attempts, in seconds, on a clock that nothing else moves."""
  found = []
  monkeypatch.setattr(retries.time, "sleep", found.append)
  monkeypatch.setattr(retries.time, "monotonic", lambda: sum(found))
  return found


class _Failing:
  """A file system that raises these errors, one per call of one method, before it works."""

  def __init__(self, store, method, errors):
    self._store, self._method, self._errors = store, method, list(errors)

  def __getattr__(self, name):
    def call(*args, **kwargs):
      if name == self._method and self._errors:
        raise self._errors.pop(0)
      return getattr(self._store, name)(*args, **kwargs)

    return call


@pytest.fixture
def failing(monkeypatch):
  """Makes the file system of every address fail."""

  def make(method, *errors):
    store = _Failing(fsspec.filesystem("memory"), method, errors)
    monkeypatch.setattr(storage, "_remote", lambda path: store)

  return make


def test_what_is_written_is_read_listed_and_deleted(folder):
  path = storage.join(folder, "b.txt")
  assert not storage.exists(path) and storage.names(folder) == []
  storage.write(path, "é\n")
  storage.write(storage.join(folder, "a.txt"), b"")
  storage.write(storage.join(folder, "below", "c.txt"), b"c")
  assert storage.exists(path) and storage.size(path) == 3
  assert storage.read(path) == "é\n".encode()
  assert storage.names(folder) == ["a.txt", "b.txt"]
  assert list(patterns.match(storage.join(folder, "*.txt"))) == [
    storage.join(folder, "a.txt"),
    path,
  ]
  assert list(patterns.match(storage.join(folder, "*"))) == [storage.join(folder, "a.txt"), path]
  below = storage.join(folder, "below", "c.txt")
  assert list(patterns.match(storage.join(folder, "*", "*"))) == [below]
  storage.delete(path)
  storage.delete(path)
  assert not storage.exists(path) and storage.names(folder) == ["a.txt"]


def test_a_path_is_the_same_from_any_folder(tmp_path, monkeypatch):
  (tmp_path / "file").write_bytes(b"content")
  monkeypatch.chdir(tmp_path)
  path = storage.absolute("folder/../file")
  monkeypatch.chdir("/")
  assert storage.read(path) == b"content"
  assert storage.absolute("gs://bucket/file") == "gs://bucket/file"


def test_a_part_of_a_file_is_read(folder):
  path = storage.join(folder, "a")
  storage.write(path, b"0123456789\nlast")
  with storage.open_raw(path) as stream:
    stream.seek(3)
    assert stream.read(4) == b"3456"
    assert stream.readline() == b"789\n"
    assert stream.read() == b"last"
  with storage.open_text(path) as lines:
    assert list(lines) == ["0123456789\n", "last"]


def test_reads_name_what_is_missing_or_too_large(folder):
  path = storage.join(folder, "a")
  with pytest.raises(FileNotFoundError, match=f"no file at {path}"):
    storage.read(path)
  storage.write(path, b"1234")
  assert storage.read(path, max_bytes=4) == b"1234"
  with pytest.raises(storage.TooLarge, match="more than 3 bytes"):
    storage.read(path, max_bytes=3)


def test_json_comes_back(folder):
  path = storage.join(folder, "a.json")
  storage.write_json(path, {"b": 1, "a": ["é"]})
  assert storage.read(path) == b'{\n "b": 1,\n "a": [\n  "\\u00e9"\n ]\n}\n'
  assert storage.read_json(path) == {"b": 1, "a": ["é"]}


def test_a_write_that_dies_in_the_middle_leaves_the_old_content(folder):
  path = storage.join(folder, "a")
  storage.write(path, b"old")
  with pytest.raises(KeyboardInterrupt), storage.writer(path) as stream:
    stream.write(b"new, incomplete")
    stream.flush()
    assert storage.read(path) == b"old"
    raise KeyboardInterrupt
  assert storage.read(path) == b"old" and storage.names(folder) == ["a"]


def test_a_killed_process_leaves_the_old_content(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"old")
  code = (
    "import os, sys\nfrom walt_t5x.files import storage\n"
    "with storage.writer(sys.argv[1]) as stream:\n"
    "  stream.write(b'new, incomplete')\n  stream.flush()\n  os.kill(os.getpid(), 9)\n"
  )
  done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
  assert done.returncode == -9 and path.read_bytes() == b"old"
  left = [name for name in os.listdir(tmp_path) if name != "a"]
  assert len(left) == 1 and left[0].startswith(storage.TEMPORARY) and left[0].endswith(".tmp")


@pytest.mark.parametrize("existed", [False, True])
def test_a_new_folder_has_everything_or_nothing(tmp_path, existed):
  path = tmp_path / "a" / "b"
  if existed:
    path.mkdir(parents=True)
  with pytest.raises(KeyboardInterrupt), local_folders.new_folder(path) as folder:
    (folder / "z").mkdir()
    raise KeyboardInterrupt
  assert path.exists() == existed and not list(path.glob("*"))
  # A killed call leaves its temporary folder.
  (path / f"{storage.TEMPORARY}0" / "z").mkdir(parents=True)
  with local_folders.new_folder(path) as folder:
    (folder / "z").mkdir()
    (folder / "z" / "file").write_text("1")
    (folder / "a").write_text("2")
    assert [file.name for file in path.iterdir()] == [folder.name]
  assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == ["a", "z", "z/file"]
  with pytest.raises(FileExistsError, match="b, which is not empty"):
    with local_folders.new_folder(path):
      pass
  assert len(list(path.iterdir())) == 2


def test_a_file_is_replaced_and_renamed(folder):
  one, two = storage.join(folder, "one"), storage.join(folder, "two")
  storage.write(one, b"longer than the next content")
  storage.write(one, b"1")
  storage.write(two, b"2")
  storage.rename(one, two)
  assert storage.read(two) == b"1" and storage.names(folder) == ["two"]


def test_a_folder_is_made_listed_and_renamed(folder):
  one, two = storage.join(folder, "one"), storage.join(folder, "two")
  assert storage.folders(folder) == []
  storage.make_folder(one)
  storage.make_folder(one)
  assert storage.exists(one)
  storage.write(storage.join(one, "a.txt"), b"a")
  storage.write(storage.join(one, "below", "b.txt"), b"b")
  storage.write(storage.join(folder, "c.txt"), b"c")
  assert storage.folders(folder) == ["one"] and storage.names(folder) == ["c.txt"]
  storage.rename_folder(one, two)
  assert storage.exists(two) and not storage.exists(one)
  assert storage.folders(folder) == ["two"] and storage.folders(two) == ["below"]
  assert storage.names(two) == ["a.txt"]
  assert storage.read(storage.join(two, "below", "b.txt")) == b"b"


def test_in_an_object_store_folders_are_no_objects(monkeypatch):
  class Objects(MemoryFileSystem):
    def cp_file(self, path1, path2, **kwargs):
      if not self.isfile(path1):
        raise FileNotFoundError(path1)
      super().cp_file(path1, path2, **kwargs)

  monkeypatch.setattr(storage, "_remote", lambda path: Objects())
  folder = f"memory://{uuid.uuid4().hex}"
  storage.write(f"{folder}/one/below/a", b"1")
  storage.rename_folder(f"{folder}/one", f"{folder}/two")
  assert storage.folders(folder) == ["two"] and storage.read(f"{folder}/two/below/a") == b"1"
  monkeypatch.delattr(storage, "_remote")
  storage.make_folder("s3://bucket/one")  # Makes no request.


def test_a_file_that_is_written_while_its_folder_is_renamed_is_not_lost(monkeypatch):
  class Objects(MemoryFileSystem):
    def copy(self, path1, path2, **kwargs):
      super().copy(path1, path2, **kwargs)
      storage.write(f"{folder}/one/late", b"2")

  monkeypatch.setattr(storage, "_remote", lambda path: Objects())
  monkeypatch.setattr(storage, "is_object_store", lambda path: True)
  folder = f"memory://{uuid.uuid4().hex}"
  storage.write(f"{folder}/one/below/a", b"1")
  storage.rename_folder(f"{folder}/one", f"{folder}/two")
  assert storage.read(f"{folder}/one/late") == b"2" and storage.folders(folder) == ["one", "two"]
  assert storage.read(f"{folder}/two/below/a") == b"1"


def test_errors_that_may_pass_are_retried(pauses, failing):
  path = f"memory://{uuid.uuid4().hex}/a"
  slow_down = OSError(errno.EBUSY, "Slow Down")
  failing("put_file", slow_down, ConnectionResetError(), TimeoutError())
  storage.write(path, b"1")
  assert len(pauses) == 3
  failing("cat_file", slow_down, slow_down)
  assert storage.read(path) == b"1" and len(pauses) == 5
  failing("info", slow_down)
  assert storage.exists(path) and len(pauses) == 6
  folder, moved = storage.parent(path), f"{storage.parent(path)}_moved"
  failing("rm", slow_down)
  storage.rename_folder(folder, moved)
  assert storage.names(moved) == ["a"] and len(pauses) == 7
  failing("ls", slow_down)
  assert storage.folders(moved) == [] and len(pauses) == 8
  failing("makedirs", slow_down)
  storage.make_folder(folder)
  assert storage.exists(folder) and len(pauses) == 9


def test_pauses_double_with_jitter_up_to_a_limit(pauses):
  def fail():
    raise TimeoutError("slow")

  with pytest.raises(OSError):
    retries.retried("read", "a", fail)
  assert sum(pauses) <= retries.DEADLINE
  for i, pause in enumerate(pauses):
    middle = min(retries.FIRST_PAUSE * 2**i, retries.LONGEST_PAUSE)
    assert middle / 2 <= pause <= middle * 1.5
  assert len({pause / retries.FIRST_PAUSE % 1 for pause in pauses}) > 1


def test_an_outage_ends_with_an_error_that_names_path_operation_and_attempts(pauses, failing):
  path = f"memory://{uuid.uuid4().hex}/a"
  failing("info", *itertools.repeat(ConnectionResetError(errno.ECONNRESET, "reset"), 99))
  with pytest.raises(OSError, match=rf"cannot measure {path}, \d+ attempts .* reset") as found:
    storage.size(path)
  assert f"{len(pauses) + 1} attempts within {retries.DEADLINE:.0f} seconds" in str(found.value)
  # An outage is not an answer: the file is not reported as missing.
  with pytest.raises(OSError, match="cannot look for"):
    storage.exists(path)


def test_a_permanent_error_is_not_retried_and_says_where(pauses, failing):
  path = f"memory://{uuid.uuid4().hex}/a"
  failing("cat_file", *itertools.repeat(PermissionError(errno.EACCES, "Access Denied"), 9))
  with pytest.raises(PermissionError, match=f"cannot read {path}, 1 attempt"):
    storage.read(path)
  failing("put_file", *itertools.repeat(PermissionError(errno.EACCES, "Access Denied"), 9))
  with pytest.raises(storage.CannotWrite, match=f"cannot write {path}: Access Denied"):
    storage.write(path, b"1")
  assert not pauses


def test_an_upload_that_fails_leaves_the_old_content(pauses, failing):
  path = f"memory://{uuid.uuid4().hex}/out/a"
  storage.write(path, b"old")
  failing("mv", *itertools.repeat(TimeoutError("slow"), 99))
  with pytest.raises(storage.CannotWrite, match="cannot write"):
    storage.write(path, b"new")
  assert storage.read(path) == b"old" and storage.names(storage.parent(path)) == ["a"]


def _of_s3(status, code="", number=errno.EIO):
  """An error as s3fs translates it."""
  error = OSError(number, "told")
  error.__cause__ = type("ClientError", (Exception,), {})()
  answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
  error.__cause__.response = answer
  return error


@pytest.mark.parametrize(
  "error, passes",
  [
    (_of_s3(429, "TooManyRequests"), True),
    (_of_s3(500, "InternalError", errno.EREMOTEIO), True),
    (_of_s3(400, "IncompleteBody", errno.EINVAL), True),
    (_of_s3(400, "InvalidArgument", errno.EINVAL), False),
    (type("ReadTimeoutError", (type("HTTPClientError", (Exception,), {}),), {})(), True),
    (type("HttpError", (Exception,), {"code": "503"})(), True),
    (retries.Outage(3, TimeoutError()), False),
    (retries.Incomplete("half"), True),
    (OSError(errno.ENOSPC, "full"), False),
    (FileNotFoundError(), False),
    (ValueError(), False),
    (OSError(errno.ESTALE, "stale handle"), True),
    (BrokenPipeError(), True),
    (type("HttpError", (Exception,), {"code": 503})(), True),
    (type("HttpError", (Exception,), {"code": 429})(), True),
    (type("HttpError", (Exception,), {"code": 403})(), False),
    (type("UnavailableError", (Exception,), {})(), True),
  ],
)
def test_which_errors_may_pass(error, passes):
  assert retries.may_pass(error) is passes


def test_the_file_layer_loads_neither_beam_nor_tensorflow():
  code = (
    "import sys\nfrom walt_t5x.files import storage\nlight = set(sys.modules)\n"
    "storage.write('memory://a/b', 'x')\nassert storage.read('memory://a/b') == b'x'\n"
    "assert not {'tensorflow', 'apache_beam', 'seqio', 'jax'} & set(sys.modules)\n"
    "assert not {'fsspec', 'etils'} & light\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_a_range_is_part_of_the_file(folder):
  path = storage.join(folder, "a")
  storage.write(path, bytes(range(100)))
  for start, end in ((0, 1), (10, 90), (90, 100)):
    assert storage.read_range(path, start, end) == bytes(range(start, end))


def test_a_mirror_copies_what_has_changed_and_fetches_what_is_there(folder):
  storage.write(storage.join(folder, "metrics.jsonl"), b"1\n")
  copied = mirror.Mirror(folder)
  copied.fetch("metrics")
  with open(os.path.join(copied.folder, "metrics.jsonl"), "ab") as file:
    file.write(b"2\n")
  os.makedirs(os.path.join(copied.folder, "below"), exist_ok=True)
  with open(os.path.join(copied.folder, "below", "events"), "wb") as file:
    file.write(b"a")
  copied.upload()
  assert storage.read(storage.join(folder, "metrics.jsonl")) == b"1\n2\n"
  assert storage.read(storage.join(folder, "below", "events")) == b"a"
  if storage.is_local(folder):
    assert copied.folder == folder
    return
  storage.write(storage.join(folder, "below", "events"), b"written by another")
  copied.upload()
  assert storage.read(storage.join(folder, "below", "events")) == b"written by another"


def test_an_address_without_its_driver_names_what_to_install():
  code = (
    "import sys; sys.modules['gcsfs'] = None\n"
    "from walt_t5x.files import storage; storage.exists('gs://b/a')"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert "ValueError: gs://b/a: " in done.stderr and "gcsfs" in done.stderr
  assert "requirements-stores.lock" in done.stderr


def test_results_come_in_the_order_of_the_items():
  assert list(storage.for_each(lambda n: (time.sleep((9 - n) / 100), n)[1], range(10))) == [
    *range(10)
  ]


def test_calls_run_concurrently():
  # No call returns before all have started: sequential calls break the barrier.
  together = threading.Barrier(16, timeout=20)
  assert sorted(storage.for_each(lambda _: together.wait(), range(16))) == [*range(16)]


def test_the_first_failure_by_order_is_raised():
  def fail(n):
    time.sleep((9 - n) / 100)
    if n in (3, 7):
      raise ValueError(f"item {n}")
    return n

  results = storage.for_each(fail, range(10))
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(ValueError, match="item 3"):
    next(results)


def _flipped(content, bit):
  changed = bytearray(content)
  changed[bit // 8] ^= 1 << bit % 8
  return bytes(changed)


def test_a_flipped_bit_in_a_sealed_file_changes_nothing_that_is_read(tmp_path):
  path = tmp_path / "small.json"
  tree = {"mean": [0.125, -3e-05], "name": "é", "nested": {"count": 12, "none": None}}
  storage.write_json(path, tree, seal=True)
  assert storage.read_json(path) == tree
  content, found = path.read_bytes(), 0
  for bit in range(0, 8 * len(content), 7):
    path.write_bytes(_flipped(content, bit))
    try:
      read = storage.read_json(path)
      # What changed was the name of the digest.
      assert {name: read[name] for name in tree} == tree and len(read) <= len(tree) + 1
    except Damaged as error:
      assert str(path) in str(error)
      found += 1
  assert found > len(content)
  # A file of an earlier version, or one that was edited by hand.
  path.write_text(json.dumps(tree | {"mean": 1}))
  assert storage.read_json(path)["mean"] == 1
  for incomplete in (b"", content[:9]):
    path.write_bytes(incomplete)
    with pytest.raises(Damaged, match=r"small.json is not JSON .*Copy it again, or delete it"):
      storage.read_json(path)


def test_a_flipped_bit_in_a_safetensors_file_changes_no_tensor_that_is_read(tmp_path):
  path, arrays = tmp_path / "w.safetensors", {"a": np.arange(6.0), "b": np.ones((2, 3), np.int8)}
  tensors.save(path, arrays)
  content, found = path.read_bytes(), 0
  for bit in range(0, 8 * len(content), 7):
    path.write_bytes(_flipped(content, bit))
    try:
      read = tensors.load(path)
      assert read.keys() == arrays.keys()
      assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    except Damaged as error:
      assert str(path) in str(error)
      found += 1
  assert found > len(content) // 2
  # As other programs write them.
  safetensors.numpy.save_file(arrays, path)
  assert np.array_equal(tensors.load(path)["a"], arrays["a"])
