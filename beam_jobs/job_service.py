"""Beam's job service for one machine; it fails a job whose worker died instead of waiting indefinitely.

  python -m beam_jobs.job_service --port=8099

serves jobs launched with --runner=PortableRunner --job_endpoint=HOST:8099 --environment_type=EXTERNAL
--environment_config=HOST:PORT, where `python -m beam_jobs.worker_pool --port=PORT` starts workers. The job service and
the worker pool run on the same machine; with --host, launchers may run on others.
"""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from beam_jobs.runners import listening, worker_deaths
from walt_t5x.config import programs


def main(argv: Sequence[str] | None = None) -> int:
  """Serves until SIGTERM or SIGINT."""
  parser = programs.parser("beam_jobs.job_service", __doc__, allow_abbrev=False)
  parser.add_argument("--port", type=int, default=0, help="port of the job API (any free one)")
  parser.add_argument("--staging_dir", help="folder for staged artifacts (a temporary one)")
  parser.add_argument(
    "--host",
    default=listening.LOOPBACK,
    help="address of the job API; 0.0.0.0 opens it to the network, without authentication",
  )
  args = parser.parse_args(argv)
  from apache_beam.runners.portability import local_job_service

  logging.basicConfig(level=logging.INFO)
  ended = threading.Event()
  for signal_number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signal_number, lambda *unused: ended.set())
  host = socket.getfqdn() if args.host in ("0.0.0.0", "[::]") else args.host

  class Service(local_job_service.LocalJobServicer):
    def get_bind_address(self) -> str:
      return args.host

    def get_service_address(self) -> str:
      return host

  with worker_deaths.notice_deaths(), listening.on():
    service = Service(args.staging_dir)
    print(f"job service on port {service.start_grpc_server(args.port)}", flush=True)
    ended.wait()
    service.stop()
  return 0


if __name__ == "__main__":
  sys.exit(main())
