"""A cascade that is compiled once."""

import pytest

from tests.generation.lossless_cascade import make_cascade


@pytest.fixture(scope="session")
def two():
  """A cascade that generates two clips at a time."""
  return make_cascade()
