"""Beam's job service for one machine; it fails a job whose worker died instead of waiting indefinitely.

  python -m beam_jobs.job_service --port=8099

serves jobs launched with --runner=PortableRunner --job_endpoint=HOST:8099 --environment_type=EXTERNAL
--environment_config=HOST:PORT, where `python -m apache_beam.runners.worker.worker_pool_main --service_port=PORT` starts
workers. The job service and the worker pool run on the same machine; launchers may run on others.
"""

import logging
import signal
import sys
import threading
from collections.abc import Sequence

from beam_jobs.runners import worker_deaths
from walt_t5x.config import programs


def main(argv: Sequence[str] | None = None) -> int:
  """Serves until SIGTERM or SIGINT."""
  parser = programs.parser("beam_jobs.job_service", __doc__, allow_abbrev=False)
  parser.add_argument("--port", type=int, default=0, help="port of the job API (any free one)")
  parser.add_argument("--staging_dir", help="folder for staged artifacts (a temporary one)")
  args = parser.parse_args(argv)
  from apache_beam.runners.portability import local_job_service

  logging.basicConfig(level=logging.INFO)
  ended = threading.Event()
  for signal_number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signal_number, lambda *unused: ended.set())
  with worker_deaths.notice_deaths():
    service = local_job_service.LocalJobServicer(args.staging_dir)
    print(f"job service on port {service.start_grpc_server(args.port)}", flush=True)
    ended.wait()
    service.stop()
  return 0


if __name__ == "__main__":
  sys.exit(main())
