"""Counts the collectives of a compiled step."""

from walt_t5x.planning.collectives import collectives


def collective_counts(hlo: str) -> dict[str, int]:
  """Number of collectives that a step runs, by kind."""
  found: dict[str, int] = {}
  for collective in collectives(hlo):
    if collective.times:
      found[collective.kind] = found.get(collective.kind, 0) + collective.times
  return found
