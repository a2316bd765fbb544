"""Replays: the result equals an undisturbed run on fixed files; nothing else changes, and no row is lost."""

import ast
import io
import json
import pathlib
import shutil

import pytest

from beam_jobs import preprocess, replay, verify
from beam_jobs.shards import encoders, make_shard, replays, shard_files
from beam_jobs.shards.shard_files import LedgerError
from beam_jobs.sources import rows
from beam_jobs.sources.rows import PROBLEMS
from data import tfrecord
from tests.beam_jobs import media
from tests.beam_jobs.conftest import digests, good_rows, write_manifest
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.html import inspection
from walt_t5x.media import excerpts

BROKEN = ("clip0.mp4", "clip3.mp4", "clip4.mp4", "still1.png")


def payloads(output: pathlib.Path) -> dict[str, list[bytes]]:
  """Encoded records of each task folder, sorted."""
  return {
    folder.name: sorted(
      payload
      for path in folder.glob("*.tfrecord-*-of-?????")
      for payload in tfrecord.read_records(io.BytesIO(path.read_bytes()))
    )
    for folder in sorted(output.iterdir())
    if folder.is_dir()
  }


def stats(output: pathlib.Path) -> dict[str, dict]:
  return {
    str(path.relative_to(output)): json.loads(path.read_text())
    for path in sorted(output.glob("*/stats.*.json"))
  }


def corpus(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, bytes]]:
  """A manifest of eight valid rows and an invalid one, with four broken files, and their fixed contents.

  One split, six videos.
  """
  folder.mkdir(exist_ok=True)
  manifest_rows = [row | {"split": "train"} for row in good_rows(folder, videos=6, images=3)]
  intact = {name: (folder / name).read_bytes() for name in BROKEN}
  (folder / "clip0.mp4").write_bytes(intact["clip0.mp4"][:700])
  (folder / "clip3.mp4").unlink()
  (folder / "clip4.mp4").unlink()
  (folder / "still1.png").unlink()
  return write_manifest(folder, [*manifest_rows, "{ no json"]), intact


def mend(folder: pathlib.Path, intact: dict[str, bytes], *names: str) -> None:
  for name in names:
    (folder / name).write_bytes(intact[name])


def pixels(manifest: pathlib.Path, output: pathlib.Path) -> list[str]:
  """A job without encoders."""
  flags = ["--task=toy", "--content=pixels", "--resolutions=16x16", "--num_frames=9"]
  flags += ["--num_shards=3", "--decode_isolation=thread"]
  return [f"--manifest={manifest}", f"--output={output}", *flags]


def again(folder: pathlib.Path, output: pathlib.Path, *flags: str) -> list[str]:
  common = [f"--output={output}", "--task=toy", f"--media_root={folder}"]
  return [*common, "--decode_isolation=thread", *flags]


def verified(output: pathlib.Path) -> int:
  return verify.main([str(output / "toy_videos"), str(output / "toy_images")])


def test_a_replay_of_fixed_files_gives_an_undisturbed_run_and_changes_nothing_else(
  world, tmp_path, monkeypatch
):
  manifest, intact = corpus(tmp_path)
  out, flags = tmp_path / "out", {"resolutions": "16x16", "decode_isolation": "thread"}
  argv = world.argv(manifest, out, num_shards=3, **flags)
  assert preprocess.run(argv)["dead_by_reason"] == {
    "bad_manifest_line": 1,
    "missing": 3,
    "truncated": 1,
  }
  before, stated = digests(out), stats(out)
  noted = json.loads((out / "toy.settings.json").read_text())["batch_sizes"]
  assert noted == {"batch_size": 2, "image_batch_size": 4}
  # Another VAE is rejected before anything is written.
  origin = encoders.origin
  other = {"fingerprint": "0" * 64}
  with monkeypatch.context() as patch:
    patch.setattr(
      encoders, "origin", lambda loaded: {**origin(loaded), "vae": origin(loaded)["vae"] | other}
    )
    with pytest.raises(Mismatch, match=r"vae\.fingerprint: .* this run '0000"):
      replay.run(again(tmp_path, out, "--all"))
  # So are other batch sizes; the job rejects them too.
  with pytest.raises(Mismatch, match=r"--batch_size: got 8, but .* made with 2"):
    replay.run(again(tmp_path, out, "--all", "--batch_size=8"))
  with pytest.raises(Mismatch, match=r"batch_size: the folder has 2, this run 8"):
    preprocess.run([*argv, "--batch_size=8"])
  assert digests(out) == before
  # The replay runs with the job's encoders and batch sizes.
  made = []
  monkeypatch.setattr(
    encoders, "origin", lambda loaded: made.append(loaded.config) or origin(loaded)
  )
  mend(tmp_path, intact, *BROKEN)
  result = replay.run(again(tmp_path, out, "--reason=missing", "--reason=truncated"))
  assert [config.batch_sizes for config in made] == [noted]
  assert (result["rows"], result["written"], result["dead"]) == (4, 4, 0)
  assert result["dead_letters_left"] == {"bad_manifest_line": 1}
  # The job's shards, ledgers, plan, settings and provenance do not change; only totals do.
  after = digests(out)
  changed = {name for name in before if after.get(name) != before[name]}
  assert changed <= set(stated)
  assert all("replay01" in name for name in after.keys() - before.keys())
  # The records are byte-identical to those of a run without broken files.
  fresh = tmp_path / "fresh"
  preprocess.run(world.argv(manifest, fresh, num_shards=3, **flags))
  assert payloads(out) == payloads(fresh)
  for name, expected in stats(fresh).items():
    assert stats(out)[name] == expected
  assert verified(out) == 0
  _read_by_seqio(out, expected=6)
  # A second replay finds nothing and writes nothing.
  before = digests(out)
  again_all = replay.run(again(tmp_path, out, "--all"))
  assert (again_all["rows"], again_all["replay"]) == (0, None)
  assert digests(out) == before


def _read_by_seqio(output, *, expected):
  import seqio

  from data import cached_tasks, tasks

  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(output)])
  seqio.utils._list_files_for_glob.cache_clear()
  cached_tasks.handle.cache_clear()
  try:
    task = tasks.video_task(task="toy", latents="latents/3x4x4")
    assert task.get_cached_stats("train")["examples"] == expected
    dataset = task.get_dataset(
      None, "train", use_cached=True, shuffle=False, try_in_mem_cache=False
    )
    assert sum(1 for _ in dataset) == expected
  finally:
    seqio.set_global_cache_dirs(before)
    cached_tasks.handle.cache_clear()


def test_a_row_is_in_one_place_through_several_replays(tmp_path, capsys):
  manifest, intact = corpus(tmp_path)
  out = tmp_path / "out"
  preprocess.run(pixels(manifest, out))
  mend(tmp_path, intact, "clip3.mp4")
  (tmp_path / "clip4.mp4").write_bytes(b"no media\n" * 99)
  first = replay.run(again(tmp_path, out, "--reason=missing"))
  # clip4 now fails for another reason, the image for the same; the truncated clip is not taken.
  assert (first["rows"], first["written"], first["dead"]) == (3, 1, 2)
  left = {"bad_manifest_line": 1, "missing": 1, "not_media": 1, "truncated": 1}
  assert first["dead_letters_left"] == left
  assert verified(out) == 0
  one = digests(out)
  mend(tmp_path, intact, *BROKEN)
  second = replay.run(again(tmp_path, out, "--all"))
  assert (second["rows"], second["written"], second["replay"]) == (3, 3, 2)
  two = digests(out)
  assert all(two[name] == one[name] for name in one if "stats." not in name)
  assert verified(out) == 0
  preprocess.run(pixels(manifest, tmp_path / "fresh"))
  assert payloads(out) == payloads(tmp_path / "fresh")
  assert stats(out) == stats(tmp_path / "fresh")
  # The page of a folder does not show dead letters that a replay took.
  videos = out / "toy_videos"
  names = [path.name for path in videos.iterdir() if inspection.SHARD_NAME.fullmatch(path.name)]
  _, dead = inspection.read_ledgers(str(videos), names)
  assert dead["counts"] == {"bad_manifest_line": 1}
  # The job does not run on a cache with replays.
  with pytest.raises(ValueError, match=r"holds replays \['01', '02'\] of task 'toy'"):
    preprocess.run([*pixels(manifest, out), "--retry_dead"])
  assert digests(out) == two
  # Problems that verify must find.
  shard = next(path for path in videos.glob("*replay02*-of-00003") if path.stat().st_size)
  content = shard.read_bytes()
  shard.unlink()
  capsys.readouterr()
  assert verified(out) == 1 and "is missing" in capsys.readouterr().out
  shard.write_bytes(content)
  path = out / "toy_videos" / "stats.train.json"
  text = json.dumps(storage.read_json(path))
  path.write_text(text.replace('"bad_manifest_line": 1', '"bad_manifest_line": 2'))
  assert verified(out) == 1 and "the shards add up to" in capsys.readouterr().out
  path.write_text(text)
  # A folder is checked independently of the others.
  (out / "toy_images").rename(tmp_path / "away")
  assert verify.main([str(videos)]) == 0
  (out / "toy.replay02.json").unlink()
  assert verify.main([str(videos)]) == 1 and "has no JSON file" in capsys.readouterr().out


def test_an_interrupted_replay_resumes_and_only_with_the_same_flags(tmp_path, monkeypatch, capsys):
  manifest, intact = corpus(tmp_path)
  calm, hard = tmp_path / "calm", tmp_path / "hard"
  preprocess.run(pixels(manifest, calm))
  shutil.copytree(calm, hard)
  mend(tmp_path, intact, *BROKEN)
  flags = ("--reason=missing", "--num_shards=2")
  replay.run(again(tmp_path, calm, *flags))
  _interrupt(again(tmp_path, hard, *flags), monkeypatch)
  assert verified(hard) == 1
  assert "replay 01 has not finished" in capsys.readouterr().out
  # Until then, the folders are not complete, and no other replay can start.
  assert not list(hard.glob("*/COMPLETED"))
  for other in ("--all", "--reason=truncated"):
    with pytest.raises(Mismatch, match=r"replay 01 .* has not finished"):
      replay.run(again(tmp_path, hard, other, "--num_shards=2"))
  closed = {path: path.stat().st_ino for path in hard.glob("*/*replay01*.sidecar.json")}
  assert closed
  replay.run(again(tmp_path, hard, *flags))
  assert all(path.stat().st_ino == inode for path, inode in closed.items())
  assert verified(hard) == 0
  assert digests(hard) == digests(calm)


def test_a_cache_without_batch_sizes_requires_both_flags(tmp_path):
  old = {"vae": {"fingerprint": "f"}}
  noted = old | {"batch_sizes": {"batch_size": 2, "image_batch_size": 4}}

  def sizes(before, *flags):
    args, _ = replay.parse_arguments(again(tmp_path, tmp_path, "--all", *flags))
    return replay._batch_sizes(args, before)

  with pytest.raises(
    ValueError, match="set --batch_size and --image_batch_size to those of the job"
  ):
    sizes(old, "--batch_size=2")
  assert sizes(old, "--batch_size=2", "--image_batch_size=4") == noted["batch_sizes"]
  # A recorded batch size cannot be changed.
  assert sizes(noted) == sizes(noted, "--batch_size=2") == noted["batch_sizes"]
  with pytest.raises(Mismatch, match=r"--image_batch_size: got 8, but .* made with 4"):
    sizes(noted, "--image_batch_size=8")
  # Pixels do not depend on them.
  assert sizes({"vae": {}, "batch_sizes": {}}, "--batch_size=3") == {"batch_size": 3}


def _interrupt(argv, monkeypatch):
  process, made = make_shard.process_shard, []

  def failing(shard, lines, job):
    if made:
      raise RuntimeError("the worker is gone")
    made.append(shard)
    return process(shard, lines, job)

  with monkeypatch.context() as patch:
    patch.setattr(make_shard, "process_shard", failing)
    with pytest.raises(RuntimeError, match="the worker is gone"):
      replay.run(argv)


def test_what_a_replay_rejects(tmp_path):
  manifest, _ = corpus(tmp_path)
  out = tmp_path / "out"
  with pytest.raises(FileNotFoundError, match=r"no .*toy\.settings\.json: expected the --output"):
    replay.run(again(tmp_path, out, "--all"))
  preprocess.run(pixels(manifest, out))
  with pytest.raises(ValueError, match=r"\['bad_uri'\], which are errors in the manifest"):
    replay.run(again(tmp_path, out, "--reason=bad_uri"))
  with pytest.raises(ValueError, match="is a cache of pixels"):
    replay.run(again(tmp_path, out, "--reason=missing", "--text_encoder=x"))
  before = digests(out)
  assert replay.run(again(tmp_path, out, "--reason=no_such_reason"))["rows"] == 0
  assert digests(out) == before
  (out / "toy_videos" / "COMPLETED").unlink()
  with pytest.raises(LedgerError, match=r"no COMPLETED: finish `python -m beam_jobs\.preprocess`"):
    replay.run(again(tmp_path, out, "--reason=missing"))
  sidecar = next((out / "toy_videos").glob("*.sidecar.json"))
  sidecar.unlink()
  with pytest.raises(LedgerError, match="has no sidecar"):
    replay.run(again(tmp_path, out, "--reason=missing"))


def test_a_raised_limit_lets_large_files_in(tmp_path):
  (tmp_path / "large.mp4").write_bytes(media.video(noise=40))
  (tmp_path / "small.mp4").write_bytes(media.video(height=32, width=32))
  captioned = [{"uri": name, "caption": "x"} for name in ("large.mp4", "small.mp4")]
  limit = (tmp_path / "large.mp4").stat().st_size - 1
  out = tmp_path / "out"
  job = [*pixels(write_manifest(tmp_path, captioned), out), f"--max_bytes={limit}"]
  assert preprocess.run(job)["dead_by_reason"] == {"too_large": 1}
  result = replay.run(again(tmp_path, out, "--reason=too_large", f"--max_bytes={limit + 1}"))
  assert (result["written"], result["dead"]) == (1, 0)


def test_names_of_shards_come_back_and_seqio_finds_those_of_replays():
  for number in (0, 1, 12, 100):
    name = shard_files.ShardName(task="a_b/c", split="train", index=3, count=64, replay=number)
    assert shard_files.parse_shard(str(name)) == name
    # The pattern by which seqio finds shards, given their number.
    assert pathlib.PurePath(name.file_name).match("train.tfrecord-*-of-*64")
  for other in ("a/train.tfrecord-1-of-2.sidecar.json", "a/quarantine.train.tfrecord-1-of-2", "x"):
    assert shard_files.parse_shard(other) is None


def test_problems_are_the_reasons_of_invalid_rows():
  raised = {
    node.args[0].value
    for module in (rows, excerpts)
    for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ReasonedError"
  }
  assert raised | {"bad_manifest_line"} == PROBLEMS
  everything = replays.Replay(number=1, reasons=None, buckets={}, settings={})
  assert everything.taken({"missing": 2, "bad_uri": 1}) == {"missing": 2}
