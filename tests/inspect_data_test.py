"""The page shows the contents of the shards: pixels, decoded latents, counts; and makes no requests."""

import base64
import dataclasses
import io
import json
import re
import shutil
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beam_jobs import preprocess
from beam_jobs.runners import job_flags
from beam_jobs.shards import encoders
from data import schema, tfrecord
from tests.beam_jobs import media
from tests.beam_jobs.conftest import good_rows, world, write_manifest
from tests.html.html_page import Page
from walt_t5x import inspect_data
from walt_t5x.files import storage
from walt_t5x.html import data_page, inspection
from walt_t5x.media import reading

__all__ = ["world"]  # A fixture.
EVIL = '<script>alert(1)</script> & "quotes"'


def records(folder) -> list[schema.Record]:
  return [
    schema.decode(payload)
    for path in sorted(folder.glob("*.tfrecord-*-of-?????"))
    for payload in tfrecord.read_records(io.BytesIO(path.read_bytes()))
  ]


@pytest.fixture(scope="module")
def cache(world, tmp_path_factory):
  """A cache of latents for three clips, with a rejected row and dead letters: (folder of the media, the page)."""
  root = tmp_path_factory.mktemp("inspect")
  rows = good_rows(root, videos=3, images=0)
  rows = [row | {"split": "train"} for row in rows]
  rows[0]["captions"] = [EVIL, "a circle"]
  (root / "cut.mp4").write_bytes(media.video(noise=40)[:3000])
  rows += [{"uri": f"gone{i}.mp4", "caption": EVIL} for i in range(8)]
  rows += [{"uri": "cut.mp4", "caption": "x"}, {"uri": "clip2.mp4"}]
  preprocess.run(
    world.argv(
      write_manifest(root, rows),
      root / "out",
      num_shards=1,
      resolutions="16x16",
      decode_isolation="thread",
    )
  )
  return root


def embedded(page: str) -> list[reading.DecodedVideo]:
  found = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
  return [reading.read_video(base64.b64decode(content)) for content in found]


def test_decoded_latents_equal_those_of_the_vae(cache, world, tmp_path):
  from walt_t5x.engine.checkpoints import load_params

  output = tmp_path / "page.html"
  flags = [f"--vae_checkpoint={world.checkpoint}", f"--media_root={cache}", f"--output={output}"]
  assert inspect_data.main([str(cache / "out" / "toy_videos"), *flags]) == 0
  clips = embedded(output.read_text())
  vae = encoders.build_vae(job_flags.vae_fields_of_gin(world.gin))
  params = jax.tree.map(jnp.asarray, load_params(world.checkpoint))
  decode = jax.jit(lambda latents: vae.apply({"params": params}, latents, method="decode")[0])
  written = records(cache / "out" / "toy_videos")
  # For each example the source, then its decoded latents.
  assert len(clips) == 2 * len(written) == 6
  for record, decoded in zip(written, clips[1::2]):
    latents = jnp.asarray(record.latents["latents/3x4x4"], jnp.float32)[None]
    expected = np.clip(np.asarray(decode(latents), np.float32), 0, 1) * 255
    scale = decoded.frames.shape[1] // 16
    small = decoded.frames.reshape(9, 16, scale, 16, scale, 3).mean(axis=(2, 4))
    # H.264 with its subsampled colors is applied in between.
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(small @ luma - expected @ luma).mean() < 3
    assert decoded.fps == pytest.approx(8, rel=0.01)
  assert "PSNR" in output.read_text()


def test_another_vae_is_rejected(cache, world, tmp_path, capsys):
  from tests.beam_jobs.conftest import save_checkpoint
  from walt_t5x.engine.checkpoints import load_params

  params = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, load_params(world.checkpoint))
  save_checkpoint(tmp_path / "other", params)
  flags = [f"--vae_checkpoint={tmp_path / 'other'}", f"--output={tmp_path / 'page.html'}"]
  assert inspect_data.main([str(cache / "out" / "toy_videos"), *flags]) == 2
  assert "the cache was made by" in capsys.readouterr().err
  assert not (tmp_path / "page.html").exists()


def test_the_page_has_the_jobs_counts_and_escapes_quotations(cache, tmp_path):
  page = inspect_data.inspect(str(cache / "out" / "toy_videos"), str(tmp_path / "page.html"))
  text = (tmp_path / "page.html").read_text()
  sidecar = json.loads(next((cache / "out" / "toy_videos").glob("train*.sidecar.json")).read_text())
  for title, kind in (("Rejected", "rejected"), ("Dead letters", "dead")):
    assert f"<h3>{title}: {sidecar[kind]}</h3>" in text
    for reason, count in sidecar[f"{kind}_by_reason"].items():
      assert f"<b>{reason}</b> {count}<" in text
  assert sidecar["dead_by_reason"] == {"missing": 8, "truncated": 1}
  # Five examples per reason; the others are only counted.
  assert len(re.findall(r"<code>gone\d.mp4</code>", text)) == 5
  assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
  assert not Page(text).missing_elements()
  for attribute in re.findall(r'(?:src|href|poster)="([^"]*)"', text):
    assert attribute.startswith("data:")
  assert not re.search(r"https?://", text)
  assert "false colors" in text
  assert page == str(tmp_path / "page.html")


def test_a_quarantined_shard_shows_its_records(cache, tmp_path):
  folder = tmp_path / "toy_videos"
  shutil.copytree(cache / "out" / "toy_videos", folder)
  (shard,) = folder.glob("train.tfrecord-*-of-00001")
  shutil.move(shard, folder / f"quarantine.{shard.name}")
  shard.write_bytes(b"")
  sidecar = folder / f"{shard.name}.sidecar.json"
  content = storage.read_json(sidecar)
  held = {"quarantined": 3, "written": 0, "quarantine": {"violations": ["mean of channel 2 is 99"]}}
  sidecar.write_text(json.dumps(content | held))
  inspect_data.inspect(str(folder), str(tmp_path / "page.html"))
  text = (tmp_path / "page.html").read_text()
  assert "mean of channel 2 is 99" in text
  assert text.count("<article") == 3


def test_a_pixel_cache_is_shown_directly(cache, tmp_path):
  preprocess.run(
    [
      f"--manifest={cache / 'manifest.jsonl'}",
      f"--output={tmp_path / 'out'}",
      "--task=p",
      "--content=pixels",
      "--resolutions=32x32",
      "--num_frames=9",
      "--num_shards=1",
      "--decode_isolation=thread",
    ]
  )
  inspect_data.inspect(str(tmp_path / "out" / "p_videos"), str(tmp_path / "page.html"))
  clips = embedded((tmp_path / "page.html").read_text())
  written = records(tmp_path / "out" / "p_videos")
  assert len(clips) == len(written) == 4
  for record, clip in zip(written, clips):
    scale = clip.frames.shape[1] // 32
    small = clip.frames.reshape(9, 32, scale, 32, scale, 3).mean(axis=(2, 4))
    assert np.abs(small - record.pixels["pixels/9x32x32"]).mean() < 3


def test_the_page_of_a_cache_at_an_address_is_that_of_a_local_one(cache, tmp_path):
  store = f"memory://{uuid.uuid4().hex}"
  for path in cache.rglob("*"):
    if path.is_file():
      storage.upload(path, f"{store}/{path.relative_to(cache).as_posix()}")
  for root, page in ((store, f"{store}/page.html"), (cache, tmp_path / "page.html")):
    flags = [f"--media_root={root}", f"--output={page}"]
    assert inspect_data.main([f"{root}/out/toy_videos", *flags]) == 0
  page = storage.read(f"{store}/page.html").decode().replace(store, str(cache))
  assert page == (tmp_path / "page.html").read_text()


def test_the_sample_is_drawn_by_id_independent_of_the_location(cache):
  folder, names = inspection.find_shards(str(cache / "out" / "toy_videos"))

  def ids(rows, seed):
    shards = inspection.read_shards(folder, names, rows=rows, seed=seed)
    return tuple(record.id for _, record in shards.sample)

  assert len(ids(99, 5)) == 3
  assert set(ids(1, 5)) < set(ids(2, 5)) < set(ids(99, 5))
  assert len({ids(1, seed) for seed in range(20)}) == 3
  assert ids(0, 0) == ()


@pytest.fixture(scope="module")
def split(cache, tmp_path_factory):
  """The cache with each of its records in a shard."""
  folder = tmp_path_factory.mktemp("split") / "toy_videos"
  shutil.copytree(cache / "out" / "toy_videos", folder)
  (shard,) = folder.glob("train.tfrecord-*-of-00001")
  sidecar = storage.read_json(folder / f"{shard.name}.sidecar.json")
  payloads = list(tfrecord.read_records(io.BytesIO(shard.read_bytes())))
  for file in folder.glob(f"{shard.name}*"):
    file.unlink()
  for index, payload in enumerate(payloads):
    name = f"train.tfrecord-{index:05d}-of-00003"
    (folder / name).write_bytes(tfrecord.frame(payload))
    part = {"rows": 1, "written": 1, "rejected": 0, "dead": 0}
    (folder / f"{name}.sidecar.json").write_text(json.dumps(sidecar | part))
  return folder


def test_the_page_covers_all_shards_of_a_folder_like_one(cache, split, tmp_path):
  page = tmp_path / "page.html"

  def read(path, **options):
    folder, names = inspection.find_shards(str(path))
    return inspection.read_shards(folder, names, seed=3, **options)

  parts, one = read(split, rows=2), read(cache / "out" / "toy_videos", rows=2)
  assert {r.id for _, r in parts.sample} == {r.id for _, r in one.sample}
  assert parts.columns == one.columns
  inspect_data.inspect(str(split), str(page))
  text = page.read_text()
  for index in range(3):
    assert f"<code>train.tfrecord-0000{index}-of-00003</code>" in text
  assert "<td>3: 3 written, 0 rejected, 0 dead</td>" in text
  assert "3 of 3 records from 3 of 3 shards" in text


def test_the_limit_of_shards_is_said_and_the_seed_selects_them(split, tmp_path):
  page = tmp_path / "page.html"
  inspect_data.inspect(str(split), str(page), max_shards=2)
  assert "2 of 2 records from 2 of 3 shards" in page.read_text()
  folder, names = inspection.find_shards(str(split))
  drawn = [
    tuple(inspection.draw_shards(folder, names, limit=1, seed=seed % 20)) for seed in range(40)
  ]
  assert drawn[:20] == drawn[20:] and len(set(drawn)) == 3
  # Empty shards have nothing to show.
  empty = split.parent / "empty"
  shutil.copytree(split, empty)
  (empty / names[0]).write_bytes(b"")
  for seed in range(20):
    assert inspection.draw_shards(str(empty), names, limit=2, seed=seed) == names[1:]


def test_each_source_is_followed_by_what_was_made_of_it(cache, monkeypatch):
  folder, names = inspection.find_shards(str(cache / "out" / "toy_videos"))
  shards = inspection.read_shards(folder, names, rows=1, seed=0)
  ((name, record),) = shards.sample
  # In the order of their names, the larger one is the first.
  latents = {"latents/3x16x16": np.zeros((3, 16, 16, 8)), "latents/3x8x8": np.zeros((3, 8, 8, 8))}
  shards.sample[:] = [(name, dataclasses.replace(record, latents=latents))]
  monkeypatch.setattr(
    data_page,
    "source_clip",
    lambda record, sizes, *_: {size: np.zeros((9, *size, 3), np.uint8) for size in sizes},
  )

  def decoder(z):
    return np.zeros((9, 4 * z.shape[1], 4 * z.shape[2], 3), np.uint8)

  (card,) = data_page.cards(shards, decoder=decoder, media_root="m", origin=object())
  assert [(clip["name"], clip["facts"]) for clip in card["clips"]] == [
    ("source", "9×32×32, 8\u00a0fps"),
    ("decoded latents/3x8x8", "9×32×32, 8\u00a0fps"),
    ("source", "9×64×64, 8\u00a0fps"),
    ("decoded latents/3x16x16", "9×64×64, 8\u00a0fps"),
  ]


def test_bins_contain_every_value_once():
  random = np.random.default_rng(0)
  for values in (random.normal(size=500), random.integers(0, 7, 500), random.integers(0, 999, 500)):
    counts, edges = data_page.bin_counts(values)
    assert counts.sum() == len(values)
    assert len(counts) <= 25
    for count, low, high in zip(counts[:-1], edges[:-1], edges[1:]):
      assert count == sum(low <= value < high for value in values)
  counts, _ = data_page.bin_counts(np.full(9, 3.5))
  assert counts.sum() == 9


def test_false_colors_show_the_first_principal_component_in_red():
  random = np.random.default_rng(0)
  direction = random.normal(size=8)
  direction /= np.linalg.norm(direction)
  signal = random.normal(size=(2, 3, 4, 4, 1)) * 5
  latents = list(signal * direction + random.normal(size=(2, 3, 4, 4, 8)) * 0.1 + 7)
  pictures = inspection.false_colors(latents)
  red = np.concatenate([p[..., 0].ravel() for p in pictures]).astype(float)
  inside = (red > 0) & (red < 255)
  assert abs(np.corrcoef(red[inside], signal.ravel()[inside])[0, 1]) > 0.999
  # Two channels leave blue gray.
  assert (inspection.false_colors([latents[0][..., :2]])[0][..., 2] == 128).all()


def test_a_path_without_shards_is_rejected(tmp_path, capsys):
  assert inspect_data.main([str(tmp_path)]) == 2
  assert "no shards in" in capsys.readouterr().err
  assert inspect_data.main([str(tmp_path / "train.tfrecord-00000-of-00001")]) == 2
