"""Of similar segments in any parts the best is kept, whatever the order of rows; no duplicate names a rejected clip."""

import json
import random

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.io import WriteToText

from beam_jobs import curate
from beam_jobs.curation import duplicate_files, duplicates, parts
from beam_jobs.curation.videos import CurationJob
from tests.beam_jobs.curation.conftest import splice


@pytest.fixture
def find(tmp_path):
  """Runs the transform: name -> (reason, distance, better)."""

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
  expected = {f"{one.name} near": ("near_duplicate", 8.0, one.name) for one in base[:60]}
  expected |= {one.name: ("exact_duplicate", 0.0, f"{one.name} same") for one in base[60:80]}
  assert found == expected
  exact = {name: pair for name, pair in expected.items() if pair[0] == "exact_duplicate"}
  assert find([*base, *copies], None) == exact
  assert find([*base, *copies], 7) == exact


def _near_by_loops(candidates, near_bits):
  """name -> (bits, better): a loop over all pairs of clips with 16 equal bits in the same place, the best first."""
  found, leaders = {}, {}
  for one in sorted(candidates, key=lambda one: (-one.quality, one.name)):
    numbers = [int.from_bytes(one.hashes[i : i + 2], "little") for i in range(0, 48, 2)]
    for band in {(i % 8, number) for i, number in enumerate(numbers)}:
      pairs = [
        (sum((a ^ b).bit_count() for a, b in zip(one.hashes, other.hashes)) / 3, other.name)
        for other in leaders.get(band, ())
      ]
      near = [pair for pair in pairs if pair[0] <= near_bits]
      if near:
        # Of equally close ones, the best of a band, and the smallest name of all bands.
        closest = min(near, key=lambda pair: pair[0])
        found[one.name] = min(found.get(one.name, closest), closest)
      else:
        leaders.setdefault(band, []).append(one)
  return found


def test_a_band_is_16_bits_in_their_place():
  hashes = bytes([1, 3]) * 8 + bytes([255, 15]) * 8 + bytes(16)
  found = list(duplicates.bands(duplicates.Candidate(1.0, "name", "digest", hashes, bytes(9))))
  expected = {place * 65536 + value for place in range(8) for value in (0x0301, 0x0FFF)}
  assert len(found) == 16 and {key for key, _ in found} == expected
  assert {values for _, values in found} == {(1.0, "name", "", hashes, b"")}


def test_near_duplicates_are_those_of_a_loop_over_pairs(find):
  rng = np.random.default_rng(3)
  clips = [_candidate(rng, f"{i:03}", quality=float(rng.integers(5))) for i in range(30)]
  for i in range(30, 300):
    one = clips[rng.integers(len(clips))]
    clips.append(_changed(one, int(rng.integers(1, 9)), f"{i:03}", float(rng.integers(5)), rng))
  clips.append(_changed(clips[7], 0, "same hashes", 0.0, rng))
  for near_bits in (0, 14):
    random.Random(0).shuffle(clips)
    found = find(clips, near_bits)
    expected = _near_by_loops(clips, near_bits)
    assert {reason for reason, *_ in found.values()} == {"near_duplicate"}
    assert {name: (better, bits) for name, (_, bits, better) in found.items()} == {
      name: (better, pytest.approx(bits, abs=1e-6)) for name, (bits, better) in expected.items()
    }


def test_a_duplicate_names_the_clip_at_the_end_of_its_chain(tmp_path):
  rng = np.random.default_rng(0)
  names = [f"{rng.integers(4):05d} 0 {i} \udcff {i}.mp4" for i in range(500)]
  # Each of the first 400 is a duplicate of a later one, mostly of the next one: chains of up to hundreds.
  following = {
    name: names[min(499, i + 1 + rng.geometric(0.8))] for i, name in enumerate(names[:400])
  }
  job = CurationJob(output=str(tmp_path), media_root="", parts=5)
  for index in range(5):
    of_part = {n: ("near_duplicate", 3.5, b) for n, b in following.items() if int(n[:5]) == index}
    duplicate_files._write(index, of_part.items(), job)
  for _ in range(2):  # Again without any chain.
    duplicate_files.name_kept_clips(job)
    found = {}
    for index, of_part in duplicate_files.read(job):
      assert all(int(name[:5]) == index for name in of_part)
      found |= of_part
    assert found.keys() == following.keys()
    for name, (reason, distance, better) in found.items():
      last = name
      while last in following:
        last = following[last]
      assert (reason, distance, better) == ("near_duplicate", 3.5, last)


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
  assert not list(duplicates.bands(flat[0]._replace(hashes=b"\xff" * 48)))
  rng = np.random.default_rng(0)
  shared = int(rng.integers(0, 2**16))
  crowd = []
  for i in range(3000):
    hashes = rng.integers(0, 2**16, 24, dtype=np.uint16)
    hashes[0] = shared
    crowd.append(tuple(duplicates.Candidate(1.0, f"{i:04}", str(i), hashes.tobytes())))
  # One is near a leader, one near a clip after them.
  last = duplicates._LEADERS - 1
  close = _changed(duplicates.Candidate(*crowd[last]), 3, "close", 0.5, rng)
  lost = _changed(duplicates.Candidate(*crowd[last + 1]), 3, "lost", 0.5, rng)
  found = dict(duplicates._compare((0, [*crowd, tuple(close), tuple(lost)]), 14))
  assert found == {"close": ("near_duplicate", 3.0, f"{last:04}")}


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
  assert set(better.values()) <= kept_places
  assert {r["reason"] for r in rejected if r["uri"] == "b.avi"} <= {"near_duplicate"}
  # Without the clip that was kept, its best duplicate is one.
  printed, kept, rejected = run("--duplicates=exact")
  assert len(kept) == 5 and {r["uri"] for r in rejected} <= {"a.mp4", "copy.mp4"}
  with pytest.raises(Exception, match=r"--keep: got beauty, expected one of .*motion"):
    run("--duplicates=near", "--keep=beauty")
