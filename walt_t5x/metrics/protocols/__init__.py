"""Evaluation protocols by name."""

from walt_t5x.metrics.protocols import general, published
from walt_t5x.metrics.protocols.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
  value.name: value
  for module in (general, published)
  for value in vars(module).values()
  if isinstance(value, Protocol)
}
