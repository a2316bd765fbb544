"""The address that Beam's servers listen on: without authentication, they would be open to the network."""

import contextlib
import unittest.mock
from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
_EVERYWHERE = "[::]:"


@contextlib.contextmanager
def on(host: str = LOOPBACK) -> Iterator[None]:
  """Inside the block, servers that Beam would start on all addresses listen on this one."""
  import grpc._server

  add = grpc._server._Server.add_insecure_port

  def added(self: grpc._server._Server, address: str) -> int:
    return add(self, address.replace(_EVERYWHERE, f"{host}:"))

  with unittest.mock.patch.object(grpc._server._Server, "add_insecure_port", added):
    yield
