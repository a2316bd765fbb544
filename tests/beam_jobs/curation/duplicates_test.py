"""Of similar segments in any parts the best is kept, whatever the order of rows; no duplicate names a rejected clip."""

import json
import random

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.io import WriteToText

from beam_jobs import curate
from beam_jobs.curation import duplicates, parts
from tests.beam_jobs.curation.conftest import splice


@pytest.fixture
def find(tmp_path):
  """Runs the transform: name -> (reason, better)."""

  def find(candidates, near_bits):
    with beam.Pipeline() as root:
      pairs = root | beam.Create(candidates) | duplicates.Duplicates(near_bits)
      lines = pairs | beam.Map(json.dumps)
      _ = lines | WriteToText(f"{tmp_path}/found", shard_name_template="")
    rows = [json.loads(line) for line in (tmp_path / "found").open()]
    assert len({name for name, _ in rows}) == len(rows)
    return {name: tuple(pair) for name, pair in rows}

  return find


def _candidate(rng, name, quality=1.0, digest=None):
  hashes = rng.integers(0, 2**64, 6, dtype=np.uint64).tobytes()
  return duplicates.Candidate(quality, name, digest or name, hashes)


def _changed(one, bits, name, quality, rng):
  """A candidate whose hashes differ in this number of bits each."""
  hashes = np.unpackbits(np.frombuffer(one.hashes, np.uint8)).reshape(3, -1)
  for row in hashes:
    row[rng.choice(128, bits, replace=False)] ^= 1
  return duplicates.Candidate(quality, name, name, np.packbits(hashes).tobytes())


@pytest.fixture(scope="module")
def corpus():
  """200 different segments, of which 60 have a changed copy and 20 a copy of the pixels."""
  rng = np.random.default_rng(0)
  base = [_candidate(rng, f"{i:03} base", quality=float(rng.random())) for i in range(200)]
  copies = [_changed(one, 8, f"{one.name} near", one.quality - 0.1, rng) for one in base[:60]]
  copies += [
    duplicates.Candidate(one.quality + 0.1, f"{one.name} same", one.digest, one.hashes)
    for one in base[60:80]
  ]
  return base, copies


def test_copies_are_found_and_the_best_is_kept(corpus, find):
  base, copies = corpus
  found = find([*base, *copies], 14)
  expected = {f"{one.name} near": ("near_duplicate", one.name) for one in base[:60]}
  expected |= {one.name: ("exact_duplicate", f"{one.name} same") for one in base[60:80]}
  assert found == expected
  exact = {name: pair for name, pair in expected.items() if pair[0] == "exact_duplicate"}
  assert find([*base, *copies], None) == exact
  assert find([*base, *copies], 7) == exact


def test_the_order_of_rows_does_not_matter(corpus, find):
  base, copies = corpus
  rows = [*base, *copies]
  # Chains: each differs little from the next one, and much from the others.
  rng = np.random.default_rng(7)
  for i in range(6):
    rows.append(_changed(rows[-1] if i else base[0], 10, f"chain {i}", 1.0, rng))
  before = find(rows, 14)
  random.Random(0).shuffle(rows)
  assert find(rows, 14) == before


def test_flat_pictures_are_not_compared_and_a_crowd_costs_no_square(find):
  flat = [duplicates.Candidate(1.0, str(i), str(i), bytes(48)) for i in range(3)]
  assert not list(duplicates.bands(flat[0])) and find(flat, 14) == {}
  rng = np.random.default_rng(0)
  shared = int(rng.integers(0, 2**16))
  crowd = []
  for i in range(3000):
    hashes = rng.integers(0, 2**16, 24, dtype=np.uint16)
    hashes[0] = shared
    crowd.append(tuple(duplicates.Candidate(1.0, f"{i:04}", str(i), hashes.tobytes())))
  # One of them is near a leader, one near none.
  close = _changed(duplicates.Candidate(*crowd[3]), 3, "close", 0.5, rng)
  found = dict(duplicates._compare((0, [*crowd, tuple(close)]), 14))
  assert found == {"close": ("near_duplicate", "0003")}


def test_a_duplicate_is_rejected_with_the_clip_that_is_kept(tmp_path):
  media = tmp_path / "media"
  media.mkdir()
  splice(media / "a.mp4", ("test", 2), ("fractal", 2))
  # The same scenes in another codec, order and number.
  splice(media / "b.avi", ("fractal", 2), ("bars", 1.4), ("test", 2), video="mjpeg")
  (media / "copy.mp4").write_bytes((media / "a.mp4").read_bytes())
  shared = [f"--manifest={media}", f"--output={tmp_path}/out", "--num_parts=3", "--score_side=64"]
  shared += ["--decode_isolation=thread", "--keep=seconds"]

  def run(*flags):
    printed = curate.run([*shared, *flags])
    rejected = [json.loads(x) for x in (tmp_path / "out" / parts.REJECTED).open()]
    kept = [json.loads(x) for x in (tmp_path / "out" / parts.CLIPS).open()]
    return printed, kept, rejected

  printed, kept, rejected = run("--duplicates=near")
  assert len(kept) == 3 and printed["seconds_rejected"].keys() == {
    "exact_duplicate",
    "near_duplicate",
  }
  kept_places = {(c["uri"], c["start_seconds"]) for c in kept}
  better = {
    (r["uri"], r["start_seconds"]): (r["duplicate_of"]["uri"], r["duplicate_of"]["start_seconds"])
    for r in rejected
  }
  for place in better:
    # It may be a duplicate of a better one; the last one is kept.
    for _ in range(len(better)):
      place = better.get(place, place)
    assert place in kept_places
  assert {r["reason"] for r in rejected if r["uri"] == "b.avi"} <= {"near_duplicate"}
  # Without the clip that was kept, its best duplicate is one.
  printed, kept, rejected = run("--duplicates=exact")
  assert len(kept) == 5 and {r["uri"] for r in rejected} <= {"a.mp4", "copy.mp4"}
  with pytest.raises(Exception, match=r"--keep: got beauty, expected one of .*motion"):
    run("--duplicates=near", "--keep=beauty")
