"""Stores for the tests of this folder."""

import concurrent.futures
import multiprocessing
import os

import pytest

from tests.stores import servers


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
  """The address of a store, and a function that calls another one in a process that knows only this store.

  Clients of stores keep the settings with which they were first used.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
    # While the server starts.
    pool.submit(__import__, getattr(request.module, "IMPORTED", "fsspec"))
    with servers.SERVERS[request.param]() as server:
      pool.submit(_set, dict(server.environment)).result()
      yield server.address, lambda function, *args: pool.submit(function, *args).result()
    pool.submit(os._exit, 0)  # The shutdown of its libraries takes seconds.


def _set(environment):
  os.environ.update(environment)
