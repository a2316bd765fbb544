"""Clips whose embeddings are similar are found as brute force finds them within a cluster, on every runner alike."""

import base64
import json
import random
import re
import shutil
from fractions import Fraction

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.io import WriteToText

from beam_jobs import curate
from beam_jobs.curation import clusters, duplicates, embeddings, parts
from beam_jobs.curation import videos as one_video
from beam_jobs.curation.ordering import random_order
from tests.beam_jobs.curation.conftest import splice, tool

RESULTS = (parts.CLIPS, parts.TABLE, parts.REJECTED, parts.DEAD, parts.SUMMARY)


class Colors:
  """Counts of colors, which a mirrored picture has too."""

  def __call__(self, frames):
    red, green, blue = np.moveaxis(frames.astype(np.int64) // 64, -1, 0)
    return np.bincount((16 * red + 4 * green + blue).ravel(), minlength=64)


class Broken:
  """Not a vector of numbers."""

  value = np.zeros((2, 2))

  def __call__(self, frames):
    return self.value


EMBEDDING = f"--embedding={__name__}:Colors"


def _unit(vectors):
  vectors = np.asarray(vectors, np.float64)
  return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


def _groups(rng, count, size, width=24, noise=0.15):
  """[count * size, width] float16: groups of vectors around directions that are far from each other."""
  centers = np.linalg.qr(rng.normal(size=(width, width)))[0][:count]
  spread = rng.normal(size=(count, size, width)) * noise / width**0.5
  return _unit(centers[:, None] + spread).reshape(-1, width)


def _candidates(vectors, rng):
  return [
    duplicates.Candidate(float(rng.integers(9)), f"{i:04}", str(i), bytes(48), v.tobytes())
    for i, v in enumerate(vectors)
  ]


def _by_loops(found, least):
  """name -> (cosine, better): each clip against the better ones that are kept."""
  leaders, pairs = [], {}
  for one in sorted(found, key=lambda one: (-one.quality, one.name)):
    mine = np.frombuffer(one.embedding, np.float16).astype(np.float64)
    close = [(float(mine @ theirs), other) for theirs, other in leaders]
    close = [pair for pair in close if pair[0] >= least]
    if close:
      pairs[one.name] = max(close, key=lambda pair: pair[0])
    else:
      leaders.append((mine, one.name))
  return pairs


@pytest.fixture
def find(tmp_path):
  """Runs the transform: name -> (reason, distance, better)."""

  def find(candidates, similarity):
    with beam.Pipeline() as root:
      pairs = root | beam.Create(candidates) | duplicates.Duplicates(None, similarity)
      _ = pairs | beam.Map(json.dumps) | WriteToText(f"{tmp_path}/found", shard_name_template="")
    rows = [json.loads(line) for line in (tmp_path / "found").open()]
    assert len({name for name, _ in rows}) == len(rows)
    return {name: tuple(pair) for name, pair in rows}

  return find


@pytest.mark.parametrize("noise, least", [(0.1, 0.95), (0.15, 0.985), (0.8, 0.8)])
def test_copies_are_those_of_brute_force_in_each_cluster_in_any_order(find, noise, least):
  rng = np.random.default_rng(0)
  vectors = _groups(rng, 12, 25, noise=noise)
  candidates = _candidates(vectors, rng)
  sample = np.stack(
    [vectors[int(c.name)] for c in sorted(candidates, key=lambda c: random_order(c.name))]
  )
  own = clusters.nearest(vectors, clusters.fit(sample, 300, least_distance=1 - least))
  if noise == 0.1:  # All of a group are copies, and no others.
    own[:] = 0
  expected = {}
  for one in np.unique(own):
    expected |= _by_loops([candidates[i] for i in np.flatnonzero(own == one)], least)
  random.Random(0).shuffle(candidates)
  found = find(candidates, least)
  assert 40 < len(expected) < 290
  assert {name: (reason, better) for name, (reason, _, better) in found.items()} == {
    name: ("semantic_duplicate", better) for name, (_, better) in expected.items()
  }
  for name, (_, distance, _) in found.items():
    assert distance == pytest.approx(1 - expected[name][0], abs=1e-6)


def test_the_same_pixels_are_found_first_and_zeros_are_similar_to_none(find):
  rng = np.random.default_rng(5)
  candidates = _candidates(_groups(rng, 1, 4), rng)
  assert find([], 0.9) == {}
  zeros = [c._replace(embedding=bytes(48)) for c in candidates[:2]]
  same = candidates[2]._replace(name="same", quality=-1.0)
  assert find([*zeros, candidates[2], same], 0.5) == {
    "same": ("exact_duplicate", 0.0, candidates[2].name)
  }


def test_cosines_have_no_rounding_error():
  rng = np.random.default_rng(1)
  vectors = _unit(rng.normal(size=(20, 700)) * rng.choice([1e-4, 1.0, 30.0], size=(20, 700)))
  many, one = vectors.astype(np.float64), vectors[0].astype(np.float64)
  exact = [1 - sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(v, one)) for v in many]
  assert [Fraction(d) for d in embeddings.cosine_distances(many, one)] == exact


def test_a_part_keeps_the_direction_of_an_embedding():
  rng = np.random.default_rng(2)
  vectors = rng.normal(size=(6, 300)) * 10.0 ** rng.integers(-6, 6, (6, 1))
  kept = embeddings.stacked([embeddings.unpack(embeddings.pack(v, "M:C")) for v in vectors])
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  np.testing.assert_allclose(kept.astype(np.float64) @ kept.T, unit @ unit.T, atol=1e-3)
  assert embeddings.unpack(embeddings.pack(np.zeros(3), "M:C")) == bytes(6)


def test_clusters_are_those_of_lloyds_iteration():
  rng = np.random.default_rng(3)
  vectors = _groups(rng, 10, 30)
  order = rng.permutation(300)
  centroids = clusters.fit(vectors[order], 100, least_distance=0.05)
  assert len(centroids) == 10
  own = clusters.nearest(vectors, centroids)
  dots = vectors.astype(np.float64) @ centroids.astype(np.float64).T
  np.testing.assert_array_equal(own, dots.argmax(1))
  for number, centroid in enumerate(centroids):
    mean = vectors[own == number].astype(np.float64).mean(0)
    np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), atol=1e-3)
  # Vectors of zeros have no direction.
  zeros = np.concatenate([np.zeros_like(vectors[:5]), vectors])
  assert np.isfinite(clusters.fit(zeros, 100, least_distance=0.05)).all()
  # Copies of a vector do not begin two clusters.
  copies = np.repeat(vectors[:40:4], 5, axis=0)
  assert len(clusters.fit(copies, 2500, least_distance=1e-3)) == 10


def test_a_large_cluster_is_divided_and_loses_only_pairs_across_its_pieces(monkeypatch):
  monkeypatch.setattr(clusters, "LARGEST", 40)
  rng = np.random.default_rng(4)
  vectors = _groups(rng, 16, 60, noise=0.8)
  pieces = list(clusters.divided(vectors, least_distance=1 - 0.8))
  assert sorted(np.concatenate(pieces).tolist()) == list(range(960))
  assert all((np.diff(piece) > 0).all() for piece in pieces)
  assert max(map(len, pieces)) <= 40 and len(pieces) < 150
  candidates = _candidates(vectors, rng)
  found = dict(duplicates._compare_cluster((0, map(tuple, candidates)), 0.8))
  expected = {}
  # The pieces are those of clips in their order.
  ranked = sorted(candidates, key=lambda one: one.rank)
  vectors = embeddings.stacked([one.embedding for one in ranked])
  for piece in clusters.divided(vectors, least_distance=1 - 0.8):
    expected |= _by_loops([ranked[i] for i in piece], 0.8)
  assert 100 < len(expected) < len(_by_loops(ranked, 0.8))
  assert {name: better for name, (_, _, better) in found.items()} == {
    name: better for name, (_, better) in expected.items()
  }
  # What cannot be divided costs one comparison each.
  copies = _candidates(np.repeat(vectors[:1], 500, axis=0), rng)
  assert len(dict(duplicates._compare_cluster((0, map(tuple, copies)), 0.95))) == 499


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  """Two videos of the same scenes, one of them mirrored."""
  folder = tmp_path_factory.mktemp("mirrored")
  splice(folder / "a.mp4", ("test", 2), ("fractal", 2), ("bars", 1.6))
  tool("ffmpeg", "-v", "error", "-i", str(folder / "a.mp4"), "-vf", "hflip", str(folder / "b.mp4"))
  return folder


def _run(media, output, *flags):
  shared = [f"--manifest={media}", f"--output={output}", "--num_parts=3", "--score_side=48"]
  return curate.run([*shared, "--decode_isolation=thread", "--keep=seconds", *flags])


def _bytes(output):
  return {name: (output / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def curated(media, tmp_path_factory):
  output = tmp_path_factory.mktemp("semantic") / "out"
  return output, _run(media, output, "--duplicates=semantic", EMBEDDING)


def test_mirrored_clips_are_semantic_duplicates_and_seconds_add_up(curated):
  output, printed = curated
  rejected = [json.loads(line) for line in (output / parts.REJECTED).open()]
  assert {r["reason"] for r in rejected} == {"semantic_duplicate"} and len(rejected) == 3
  for row in rejected:
    better = row["duplicate_of"]
    assert {row["uri"], better["uri"]} == {"a.mp4", "b.mp4"}
    assert row["start_seconds"] == pytest.approx(better["start_seconds"], abs=0.05)
  assert printed["clips"] == 3
  placed = printed["seconds_in_clips"] + printed["seconds_rejected"]["semantic_duplicate"]
  assert placed == pytest.approx(printed["seconds"], abs=1e-6)


def test_the_page_shows_the_cosines_of_pairs(curated):
  vectors, output = {}, curated[0]
  for path in (output / "parts").glob("part-*"):
    for video in json.loads(path.read_text())["videos"]:
      for start, *_, packed in video["segments"]:
        vector = np.frombuffer(base64.b64decode(packed), np.float16).astype(np.float64)
        vectors[video["uri"], start] = vector / np.linalg.norm(vector)
  expected = []
  for row in map(json.loads, (output / parts.REJECTED).open()):
    clips = [vectors[r["uri"], round(1e6 * r["start_seconds"])] for r in (row, row["duplicate_of"])]
    expected.append(f"{np.dot(*clips):.4f}")
  page = (output / "page.html").read_text("utf-8")
  shown = re.findall(r"of 128 bits differ, cosine ([\d.]+)</h4>", page)
  assert "--semantic_similarity=0.95" in page
  # Those that differ most come first.
  assert shown == sorted(expected) and set(shown) != {"1.0000"}


def test_other_thresholds_decode_nothing_and_give_what_a_new_run_gives(
  curated, media, tmp_path, monkeypatch
):
  shutil.copytree(curated[0], tmp_path / "out")
  monkeypatch.setattr(one_video, "scan", lambda *_, **__: pytest.fail("decodes"))
  refilter = ("--refilter", "--duplicates=semantic", "--page_clips=0")
  found = _run("nothing", tmp_path / "out", *refilter, "--semantic_similarity=1")
  assert found["clips"] == 6
  assert _run("nothing", tmp_path / "out", *refilter, "--semantic_similarity=0")["clips"] == 1
  _run("nothing", tmp_path / "out", *refilter)
  assert _bytes(tmp_path / "out") == _bytes(curated[0])


def test_parts_without_embeddings_are_made_again(curated, media, tmp_path, without_embeddings):
  shutil.copytree(without_embeddings, tmp_path / "out")
  _run(media, tmp_path / "out", "--duplicates=semantic", EMBEDDING)
  assert _bytes(tmp_path / "out") == _bytes(curated[0])


def test_a_job_that_is_stopped_ends_with_the_same_bytes(curated, media, tmp_path):
  shutil.copytree(curated[0], tmp_path / "out")
  for name in ("part-00001-of-00003.json", "duplicates-00002-of-00003.json"):
    (tmp_path / "out" / "parts" / name).unlink()
  (tmp_path / "out" / parts.SUMMARY).unlink()
  _run(media, tmp_path / "out", "--duplicates=semantic", EMBEDDING)
  assert _bytes(tmp_path / "out") == _bytes(curated[0])


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--refilter"], "have no embeddings, expected those of a run with --embedding=MODULE:CLASS"),
    (["--embedding=no_module:Class"], "--embedding: got 'no_module:Class', expected MODULE:CLASS"),
    ([f"--embedding={__name__}:Broken"], r"Broken: got shape \(2, 2\), expected a vector of"),
  ],
)
def test_wrong_flags_are_answered(media, tmp_path, capsys, flags, message, without_embeddings):
  shutil.copytree(without_embeddings, tmp_path / "out")
  shared = [f"--manifest={media}", f"--output={tmp_path}/out", "--num_parts=3", "--score_side=48"]
  shared += ["--decode_isolation=thread", "--duplicates=semantic"]
  assert curate.main([*shared, *flags]) in (1, 2)
  error = capsys.readouterr().err
  assert len(error.strip().splitlines()) <= 6 and "Traceback" not in error, error
  assert re.search(message, error), error


def test_flags_that_do_not_match_are_named_before_anything_is_read(capsys):
  shared = ["--manifest=none", "--output=none", "--duplicates=semantic"]
  with pytest.raises(SystemExit):
    curate.run(shared)
  assert "--duplicates=semantic needs --embedding=MODULE:CLASS" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    curate.run([*shared, EMBEDDING, "--semantic_similarity=95"])
  assert "--semantic_similarity: got 95.0, expected a cosine" in capsys.readouterr().err


@pytest.fixture(scope="module")
def without_embeddings(media, tmp_path_factory):
  output = tmp_path_factory.mktemp("plain") / "out"
  _run(media, output, "--page_clips=0")
  return output


def test_vectors_of_other_lengths_and_numbers_that_are_none_are_named():
  with pytest.raises(ValueError, match="vectors of 2 and of 3 numbers, expected the same number"):
    embeddings.stacked([bytes(4), bytes(6)])
  for wrong, shape in ((1.0, r"\(\)"), ([], r"\(0,\)"), ([[1.0]], r"\(1, 1\)")):
    with pytest.raises(ValueError, match=f"M:C: got shape {shape}, expected a vector"):
      embeddings.pack(np.array(wrong), "M:C")
  for wrong in ([np.nan, 1.0], [np.inf]):
    with pytest.raises(ValueError, match="M:C: got NaN or infinity, expected a vector"):
      embeddings.pack(np.array(wrong), "M:C")
