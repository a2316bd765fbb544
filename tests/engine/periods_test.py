"""Periods compared with a loop over every step."""

import itertools

import pytest

from walt_t5x.engine.builtin.main_loop import Periods

CASES = [
  Periods(total=23, stats=5, evaluate=4, save=10, save_steps={7, 8, 40}, collect=6),
  Periods(total=20, stats=5, evaluate=10, save=20),
  Periods(total=3, stats=100),
  Periods(total=9, stats=4, save_steps={2}),
]


def multiples(period, total):
  return set(range(period, total + 1, period)) | {total} if period else {total}


@pytest.mark.parametrize("periods", CASES)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_every_event_is_visited_once_and_nothing_else(periods, first):
  """From any first step, the sequence of events equals the steps at which a loop over all steps finds an event."""
  p = periods
  saved = multiples(p.save, p.total) | {s for s in p.save_steps if s <= p.total}
  wanted = {
    "summary": multiples(p.stats, p.total),
    "evaluation": multiples(p.evaluate, p.total) if p.evaluate else set(),
    "save": saved,
    "collection": multiples(p.collect, p.total) if p.collect else set(),
  }
  wanted = {name: sorted(s for s in steps if s > first) for name, steps in wanted.items()}
  met, step = {name: [] for name in wanted}, first
  stops = []
  while step < p.total:
    step = p.next_event(step)
    stops.append(step)
    for name, happens in (
      ("summary", p.ends_summary(step)),
      ("evaluation", p.evaluates(step, last=False)),
      ("save", p.saves(step, last=False)),
      ("collection", p.collects(step, last=False)),
    ):
      if happens:
        met[name].append(step)
  assert met == wanted
  assert stops == sorted(set(itertools.chain(*wanted.values())))


def test_a_stopped_run_ends_with_its_configured_events():
  """At a step outside all periods: always a checkpoint, and an evaluation and a collection if the run has them."""
  some = Periods(total=100, stats=10, evaluate=10, collect=10)
  assert some.saves(3, last=True) and some.evaluates(3, last=True) and some.collects(3, last=True)
  none = Periods(total=100, stats=10)
  assert not none.evaluates(100, last=True) and not none.collects(100, last=True)
