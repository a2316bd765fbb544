"""A job on an object store: fsspec's memory://, which has neither folders nor Beam's file systems."""

import uuid

from beam_jobs import preprocess, verify
from tests.beam_jobs.conftest import digests, good_rows, write_manifest
from walt_t5x.files import patterns, storage


def _job(manifest, folder, output):
  flags = ["--task=t", "--content=pixels", "--resolutions=16x16", "--num_frames=9"]
  flags += ["--num_shards=2", "--decode_isolation=thread", f"--media_root={folder}"]
  return [f"--manifest={manifest}", f"--output={output}", *flags]


def _upload(source, folder):
  for path in source.rglob("*"):
    if path.is_file():
      storage.write(storage.join(folder, str(path.relative_to(source))), path.read_bytes())


def test_a_job_on_an_object_store_writes_the_bytes_of_a_local_one_and_resumes(tmp_path):
  media, out = tmp_path / "media", tmp_path / "out"
  media.mkdir()
  manifest = write_manifest(
    media, [*good_rows(media, videos=3, images=2), {"uri": "no.mp4", "caption": "x"}]
  )
  preprocess.run(_job(manifest, media, out))
  store = f"memory://{uuid.uuid4().hex}"
  _upload(media, f"{store}/media")
  argv = _job(manifest, f"{store}/media", f"{store}/out")
  result = preprocess.run(argv)
  assert (result["rows"], result["written"], result["dead"]) == (6, 5, 1)
  copy = tmp_path / "copy"
  for pattern in ("*", "*/*"):
    for path in patterns.match(f"{store}/out/{pattern}"):
      storage.write(copy / path.removeprefix(f"{store}/out/"), storage.read(path))
  wanted, made = digests(out), digests(copy)
  assert made.keys() == wanted.keys()
  # A dead letter names the address of its media.
  assert all(made[name] == wanted[name] or name.endswith(".dead.jsonl") for name in wanted)
  assert verify.main([f"{store}/out/{name}" for name in ("t_videos", "t_images")]) == 0
  # A shard without its sidecar is made again, with the same bytes.
  sidecar = next(patterns.match(f"{store}/out/t_videos/*.sidecar.json"))
  before = storage.read(sidecar)
  storage.delete(sidecar)
  preprocess.run(argv)
  assert storage.read(sidecar) == before
