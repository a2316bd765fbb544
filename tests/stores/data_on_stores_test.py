"""The data programs with every path an address: they write the bytes that they write on a local disk."""

import functools
import io
import json
import os
import tarfile
import tempfile

import pytest

JOB = ["--content=pixels", "--resolutions=16x16,32x32", "--num_frames=9", "--fps=8"]
JOB += ["--num_shards=2", "--decode_isolation=thread", "--task=t"]
# Of a job that finds its 6 shards finished: sidecar, records and sidecar again of each, 12 small files of the two
# folders, 8 listings, the lock, and the manifest, which is opened several times. gcsfs asks twice what s3fs asks once.
MOST_REQUESTS = {"gs": 88, "s3": 62}
IMPORTED = "beam_jobs.preprocess"
# The arguments of each request of this process to a store.
SENT: list[str] = []


@functools.cache
def count_requests():
  """Counts the requests of this process."""
  import gcsfs
  import s3fs

  gcsfs.GCSFileSystem._call = _counting(gcsfs.GCSFileSystem._call)
  s3fs.S3FileSystem._call_s3 = _counting(s3fs.S3FileSystem._call_s3)


def _counting(method):
  async def call(self, *args, **options):
    SENT.append(f"{args} {options}")
    return await method(self, *args, **options)

  return call


def content_below(folder):
  """Relative path -> content of every file below a folder; of dead letters, without the messages, which have paths."""
  from walt_t5x.files import patterns, storage

  found = {}
  for depth in range(1, 4):
    for path in patterns.match(storage.join(folder, *["*"] * depth)):
      content = storage.read(path)
      if path.endswith(".dead.jsonl"):
        content = [{**json.loads(line), "error": ""} for line in content.splitlines()]
      found[path.removeprefix(f"{folder}/")] = content
  return found


def written_at(folder):
  """When each object below an address was written."""
  import fsspec

  found = fsspec.core.url_to_fs(folder, use_listings_cache=False)[0].find(folder, detail=True)
  return {name: str(one.get("mtime") or one["LastModified"]) for name, one in found.items()}


@functools.cache
def made_below(place):
  """Runs the programs below an address or a folder, once; (contents, fingerprint of the text encoder)."""
  from beam_jobs import preprocess
  from data.samples import sample_corpus
  from walt_t5x.files import storage
  from walt_t5x.text import encoder, init_encoder

  small = ["--num_clips=4", "--num_stills=2", "--num_prompts=2", "--size=32", "--no_real"]
  sample_corpus.main([f"--output={place}/corpus", *small])
  captions = f"--captions={place}/corpus/manifest.jsonl"
  init_encoder.main([captions, f"--output={place}/text", "--size=tiny", "--overwrite"])
  missing = b'{"uri": "no.mp4", "caption": "x"}\n'
  rows = storage.read(f"{place}/corpus/manifest.jsonl") + missing
  storage.write(f"{place}/corpus/rows.jsonl", rows)
  preprocess.run(job(place))
  return content_below(place), encoder.TextEncoder.load(f"{place}/text").fingerprint


def job(place):
  return [f"--manifest={place}/corpus/rows.jsonl", f"--output={place}/cache", *JOB]


def chain(root, local):
  """Runs the programs below an address, and below a local folder.

  Returns the contents, the fingerprints of the text encoders, and (exit code of `verify`, requests of a rerun, what it
  wrote, temporary files that are left).
  """
  from beam_jobs import preprocess, verify

  count_requests()
  here, tempfile.tempdir = tempfile.mkdtemp(), tempfile.mkdtemp()
  os.chdir(here)
  contents, fingerprints = zip(made_below(root), made_below(local), strict=True)
  code = verify.main([f"{root}/cache/t_{kind}" for kind in ("videos", "images")])
  before, started = written_at(root), len(SENT)
  preprocess.run(job(root))
  requests, after = len(SENT) - started, written_at(root)
  changed = {name for name in before | after if before.get(name) != after.get(name)}
  left = os.listdir(here) + os.listdir(tempfile.tempdir)
  return contents, fingerprints, (code, requests, changed, left)


def members_of(archive, media):
  """Writes a tar file; (offset, size, content, requests) of each member that its manifest lines name."""
  from beam_jobs.sources import columns, members, webdataset
  from walt_t5x.files import storage

  count_requests()
  with storage.writer(archive) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
    for name, content in media.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  found = []
  for line in webdataset.tar_lines(archive, archive, columns.Columns()):
    uri, started = json.loads(line)["uri"], len(SENT)
    content, member = members.read_media(uri), members.parse_member(uri)
    assert member
    found.append((member.offset, member.size, content, SENT[started:]))
  return found


def message_of(environment, function, *args):
  """What the error of a call of the file layer says, with other environment variables."""
  from walt_t5x.files import clients, storage

  before = dict(os.environ)
  os.environ.update(environment)
  clients._client.cache_clear()
  try:
    getattr(storage, function)(*args)
  except (OSError, ValueError) as error:
    return str(error)
  finally:
    os.environ.update(before)
    clients._client.cache_clear()


def listed_with_a_marker(folder):
  """(files, folders, bytes) of a folder that also has an object of its name, as consoles of stores make them."""
  import fsspec

  from walt_t5x.files import storage

  fsspec.core.url_to_fs(folder)[0].pipe_file(f"{folder}/", b"")
  storage.write(f"{folder}/a", b"12")
  storage.write(f"{folder}/below/b", b"1")
  return storage.names(folder), storage.folders(folder), storage.sizes(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The local folder with which both stores are compared."""
  return str(tmp_path_factory.mktemp("local"))


def test_every_path_may_be_an_address(store, folder):
  address, call = store
  (on_store, on_disk), (theirs, ours), found = call(chain, f"{address}/q", folder)
  assert on_store.keys() == on_disk.keys() and len(on_disk) > 40
  assert [name for name in on_disk if on_disk[name] != on_store[name]] == []
  assert theirs == ours
  code, requests, changed, left = found
  assert code == 0 and not changed and not left
  assert requests <= MOST_REQUESTS[address.partition(":")[0]]


def test_a_member_of_a_tar_file_is_read_by_its_range_in_one_request(store):
  address, call = store
  media = {f"{n}.mp4": os.urandom(5000 + n) for n in range(4)}
  found = call(members_of, f"{address}/shards/0.tar", media)
  assert [content for _, _, content, _ in found] == [*media.values()]
  for offset, size, _, requests in found:
    assert len(requests) == 1 and f"bytes={offset - 512}-{offset + size - 1}" in requests[0]


def test_the_marker_of_a_folder_is_not_in_it(store):
  address, call = store
  assert call(listed_with_a_marker, f"{address}/marked") == (["a"], ["below"], {"a": 2})


def test_an_error_of_a_store_names_the_path_and_what_to_set(store):
  address, call = store
  other, path = address.replace("walt", "absent"), f"{address}/no"
  for function in ("exists", "names", "size"):
    found = call(message_of, {}, function, f"{other}/a")
    assert found.startswith(f"{other}/a: the bucket {other} does not exist; create it, or correct")
  for function in ("read", "size", "open_raw"):
    assert call(message_of, {}, function, path) == f"no file at {path}"
  if address.startswith(
    "gs"
  ):  # Its server does not look at credentials, and does not make buckets.
    assert f"cannot write {other}/a: the bucket" in call(message_of, {}, "write", f"{other}/a", b"")
    return
  for secret, said in (("", "no credentials for"), ("wrong", "s3://walt rejects the credentials")):
    keys = {"AWS_ACCESS_KEY_ID": secret and "walt", "AWS_SECRET_ACCESS_KEY": secret}
    for call_of in (("exists", path), ("write", path, b"")):
      found = call(message_of, keys, *call_of)
      assert f"{path}: {said}" in found and "AWS_SECRET_ACCESS_KEY" in found
      assert "\n" not in found
