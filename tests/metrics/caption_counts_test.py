"""Counts by element equal a plain loop, and those of parts add up."""

import numpy as np
import pytest

from walt_t5x.metrics.caption_counts import ALL, CaptionAccuracy, Count, compare, tally

# Not the vocabulary of the shapes: elements are up to the caller.
_WORDS = {"speed": ("slow", "fast"), "order": ("before", "behind"), "background": ("dark", "light")}


def _verdicts(count):
  """Captions that name some elements each, and clips of which some cannot be read."""
  rng = np.random.default_rng(5)
  found = []
  for _ in range(count):
    shown = {e: str(rng.choice(words)) for e, words in _WORDS.items()}
    named = {e: str(rng.choice(words)) for e, words in _WORDS.items() if rng.uniform() < 0.6}
    found.append((shown | {e: None for e in _WORDS if rng.uniform() < 0.2}, named))
  return found


def test_counts_equal_a_loop_over_captions():
  clips = _verdicts(200)
  result = tally(compare(shown, named) for shown, named in clips)
  assert result.clips == 200 and list(result.counts)[-1] == ALL
  assert set(result.counts) == {*_WORDS, ALL}
  for element in _WORDS:
    pairs = [(shown[element], named[element]) for shown, named in clips if element in named]
    assert result.counts[element] == Count(
      right=sum(a == b for a, b in pairs),
      total=len(pairs),
      unreadable=sum(a is None for a, _ in pairs),
    )
    assert 0 < result.accuracy(element) < 1
  some = [(shown, named) for shown, named in clips if named]
  assert result.counts[ALL] == Count(
    right=sum(named.items() <= shown.items() for shown, named in some),
    total=len(some),
    unreadable=sum(any(shown[e] is None for e in named) for shown, named in some),
  )
  assert len(some) < len(clips)


def test_counts_of_parts_add_up_even_if_a_part_lacks_an_element():
  verdicts = [compare(*clip) for clip in _verdicts(50)]
  parts = [tally(verdicts[:1]), tally([]), tally(verdicts[1:20]), tally(verdicts[20:])]
  assert sum(parts, CaptionAccuracy()) == tally(verdicts)
  speed = tally([compare({"speed": "fast"}, {"speed": "fast"})])
  order = tally([compare({"order": "behind"}, {"order": "before"})])
  assert list((speed + order).counts) == ["speed", "order", ALL]


def test_elements_that_no_caption_names_are_not_counted():
  result = tally([compare({"speed": "fast", "order": None}, {"speed": "slow"}), compare({}, {})])
  assert result == CaptionAccuracy(clips=2, counts={"speed": Count(total=1), ALL: Count(total=1)})
  assert np.isnan(result.accuracy("order")) and "order" not in str(result)
  empty = CaptionAccuracy(clips=2, counts={"speed": Count(), ALL: Count()})
  for nothing in (empty, tally([compare({}, {}), compare({}, {})])):
    assert nothing.as_dict() == {"caption_accuracy/clips": 2}
    assert str(nothing).endswith("2 clips: none, as no caption names a color, shape or direction")


def test_scalars_and_table_have_every_element():
  result = tally([compare({"speed": s}, {"speed": "slow"}) for s in ("slow", "fast", None, "slow")])
  values = {"accuracy": 0.5, "right": 2, "total": 4, "unreadable": 1}
  assert result.as_dict() == {"caption_accuracy/clips": 4} | {
    f"caption_accuracy/{element}_{name}": value
    for element in ("speed", ALL)
    for name, value in values.items()
  }
  assert "2 of 4" in str(result) and "(1 unreadable)" in str(result)
  assert result.accuracy(ALL) == pytest.approx(0.5)


def test_an_element_that_the_reader_does_not_know_is_wrong():
  assert compare({"order": "behind"}, {"speed": "slow"}).right == {"speed": False}
  assert tally([compare({}, {"speed": "slow"})]).counts["speed"] == Count(total=1, unreadable=1)
