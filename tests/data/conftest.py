"""The small cache as a fixture."""

import pytest

from data import cached_tasks
from tests.data.toy_cache import cache_dirs, toy_provenance, toy_record, write_task


@pytest.fixture
def cache(tmp_path):
  for modality, count in (("image", 30), ("video", 40)):
    records = [toy_record(modality, i) for i in range(count)]
    kept = toy_provenance(records[0].latents)
    write_task(tmp_path / f"toy_{modality}s", records, kept)
  cached_tasks.handle.cache_clear()
  with cache_dirs(str(tmp_path)):
    yield tmp_path
