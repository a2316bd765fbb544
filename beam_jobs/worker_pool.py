"""Starts Beam's workers on one machine for the jobs of `beam_jobs.job_service`.

  python -m beam_jobs.worker_pool --port=8098

is Beam's `worker_pool_main` on the loopback address, whose workers run this interpreter. Whoever reaches the port can
run code: set --host to another address only in a network that you trust.
"""

import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Any

from beam_jobs.runners import listening
from walt_t5x.config import programs


def main(argv: Sequence[str] | None = None) -> int:
  """Serves until it is killed."""
  parser = programs.parser("beam_jobs.worker_pool", __doc__, allow_abbrev=False)
  parser.add_argument("--port", type=int, required=True, help="port of the pool")
  parser.add_argument(
    "--host",
    default=listening.LOOPBACK,
    help="address to listen on; 0.0.0.0 opens it to the network",
  )
  args = parser.parse_args(argv)
  from apache_beam.runners.worker import worker_pool_main

  def popen(command: list[str], **options: Any) -> subprocess.Popen:
    # Beam runs the `python` of PATH, and does not read what its workers print.
    options["stdout"] = None
    return subprocess.Popen([sys.executable, *command[1:]], **options)

  beam: Any = worker_pool_main
  beam.subprocess = types.SimpleNamespace(
    Popen=popen, TimeoutExpired=subprocess.TimeoutExpired, PIPE=subprocess.PIPE
  )
  with listening.on(args.host):
    worker_pool_main.main([f"--service_port={args.port}"])
  return 0


if __name__ == "__main__":
  sys.exit(main())
