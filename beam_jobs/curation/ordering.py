"""An order of names that is random, but the same wherever and whenever it is computed."""

import hashlib


def random_order(name: str) -> int:
  """The first 64 bits of the SHA-256 of a name, which need not be valid Unicode."""
  return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
