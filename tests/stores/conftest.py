"""Stores for the tests of this folder."""

import concurrent.futures
import multiprocessing
import os

import pytest

from tests.stores import servers


@pytest.fixture(scope="module")
def process(request):
  """A process that knows the stores of a module's tests and no others: clients keep the settings of their first use.

  The clients and settings of the two stores are different.
  """
  start = multiprocessing.get_context(getattr(request.module, "START", "spawn"))
  with concurrent.futures.ProcessPoolExecutor(1, start) as pool:
    # While the server starts.
    pool.submit(__import__, getattr(request.module, "IMPORTED", "fsspec"))
    yield pool
    pool.submit(os._exit, 0)  # The shutdown of its libraries takes seconds.


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(process, request):
  """The address of a store, and a function that calls another one in the process."""
  with servers.SERVERS[request.param]() as server:
    process.submit(_set, dict(server.environment)).result()
    yield server.address, lambda function, *args: process.submit(function, *args).result()


def _set(environment):
  os.environ.update(environment)
