"""The data programs with every path an address: they write the bytes that they write on a local disk."""

import concurrent.futures
import io
import json
import multiprocessing
import os
import re
import tarfile

import pytest

from tests.stores import servers

JOB = ["--content=pixels", "--resolutions=16x16,32x32", "--num_frames=9", "--fps=8"]
JOB += ["--num_shards=2", "--decode_isolation=thread", "--task=t"]
# Of a job that finds its 6 shards finished: sidecar, records and sidecar again of each, 12 small files of the two
# folders, 8 listings, the lock, and the manifest, which is opened several times. gcsfs asks twice what s3fs asks once.
MOST_REQUESTS = {"gs": 88, "s3": 62}


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request):
  with servers.SERVERS[request.param]() as running:
    yield running


def set_environment(environment):
  os.environ.update(environment)


def in_new_process(server, function, *args):
  """Result of a function in a process that knows only this store, and in which nothing is loaded yet."""
  with concurrent.futures.ProcessPoolExecutor(
    1,
    multiprocessing.get_context("spawn"),
    initializer=set_environment,
    initargs=(dict(server.environment),),
  ) as pool:
    return pool.submit(function, *args).result()


def counted():
  """A list that grows by the arguments of each request that this process sends to a store."""
  import gcsfs
  import s3fs

  sent = []

  def counting(method):
    async def call(self, *args, **options):
      sent.append(f"{args} {options}")
      return await method(self, *args, **options)

    return call

  gcsfs.GCSFileSystem._call = counting(gcsfs.GCSFileSystem._call)
  s3fs.S3FileSystem._call_s3 = counting(s3fs.S3FileSystem._call_s3)
  return sent


def content_below(folder):
  """Relative path -> content of every file below a folder; of dead letters, without their messages, which have paths."""
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


def chain(root, local):
  """Runs the programs below an address, then below a local folder; returns what there is to compare."""
  from beam_jobs import preprocess, verify
  from data.samples import sample_corpus
  from walt_t5x.files import storage
  from walt_t5x.text import init_encoder

  def job(place):
    return [f"--manifest={place}/corpus/rows.jsonl", f"--output={place}/cache", *JOB]

  sent = counted()
  for place in (root, local):
    small = ["--num_clips=4", "--num_stills=2", "--num_prompts=2", "--size=32", "--no_real"]
    sample_corpus.main([f"--output={place}/corpus", *small])
    captions = f"--captions={place}/corpus/manifest.jsonl"
    init_encoder.main([captions, f"--output={place}/text", "--size=tiny", "--overwrite"])
    missing = b'{"uri": "no.mp4", "caption": "x"}\n'
    rows = storage.read(f"{place}/corpus/manifest.jsonl") + missing
    storage.write(f"{place}/corpus/rows.jsonl", rows)
    preprocess.run(job(place))
  result = {"files": [content_below(place) for place in (root, local)]}
  result["verified"] = verify.main([f"{root}/cache/t_{kind}" for kind in ("videos", "images")])
  before, started = written_at(root), len(sent)
  preprocess.run(job(root))
  result["requests"] = len(sent) - started
  after = written_at(root)
  result["written again"] = {name for name in before | after if before.get(name) != after.get(name)}
  return result


def members_of(archive, media):
  """Writes a tar file; (uri, content, requests) of each member that its manifest lines name."""
  from beam_jobs.sources import columns, members, webdataset
  from walt_t5x.files import storage

  sent = counted()
  with storage.writer(archive) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
    for name, content in media.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  found = []
  for line in webdataset.tar_lines(archive, archive, columns.Columns()):
    uri, started = json.loads(line)["uri"], len(sent)
    found.append((uri, members.read_media(uri), sent[started:]))
  return found


def test_every_path_may_be_an_address(server, tmp_path):
  result = in_new_process(server, chain, f"{server.address}/q", str(tmp_path))
  on_store, on_disk = result["files"]
  assert on_store.keys() == on_disk.keys() and len(on_disk) > 40
  assert [name for name in on_disk if on_disk[name] != on_store[name]] == []
  assert result["verified"] == 0
  assert not result["written again"]
  assert result["requests"] <= MOST_REQUESTS[server.address.partition(":")[0]]


def test_a_member_of_a_tar_file_is_read_by_its_range_in_one_request(server):
  media = {f"{n}.mp4": os.urandom(5000 + n) for n in range(4)}
  found = in_new_process(server, members_of, f"{server.address}/shards/0.tar", media)
  assert [content for _, content, _ in found] == [*media.values()]
  for uri, _, requests in found:
    offset, size = map(int, re.search(r"@(\d+)\+(\d+)$", uri).groups())
    assert len(requests) == 1 and f"bytes={offset - 512}-{offset + size - 1}" in requests[0]
