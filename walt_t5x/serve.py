"""An HTTP server with the videos API of OpenAI for a trained cascade; clips of waiting requests are made in batches.

  pip install starlette==1.10.0 uvicorn==0.54.0 python-multipart==0.0.34 prometheus-client
  python -m walt_t5x.serve --preset=shapes --output=served

The cascade is chosen as for `walt_t5x.generate`: by --run, --preset or --gin_file. Everything is checked and loaded
before the server listens, on the loopback address unless --host is set. Requests need the token in the environment
variable WALT_SERVE_TOKEN if there is one; other addresses than loopback require it. An accepted job is a file in
--output: after a kill, the same command finishes all of them. SIGTERM finishes the running batch and keeps the rest.
See docs/serving.md.
"""

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs
from walt_t5x.config.waiting import waiting
from walt_t5x.files import locks, storage
from walt_t5x.generation import cascade_flags

FLAGS = flags.FLAGS
TOKEN = "WALT_SERVE_TOKEN"
# Connections, each of which may send a body.
_MAX_CONNECTIONS = 256
# Seconds that answers which are being sent have after a SIGTERM.
_GRACE = 10


def define_flags() -> None:
  """Defines the flags of the program."""
  cascade_flags.define_flags()
  with gin_flags.group("the server"):
    flags.DEFINE_string("output", None, "Folder of jobs and clips, on a local disk (required).")
    flags.DEFINE_string("host", "127.0.0.1", f"Address to serve on; others need {TOKEN}.")
    flags.DEFINE_integer("port", 8000, "Port to serve on; 0 chooses a free one.", 0, 65535)
    flags.DEFINE_string(
      "model", None, "Name of the cascade in requests; that of the preset, or walt, by default."
    )
    flags.DEFINE_float(
      "fps", None, "Frame rate of the clips; that of the training data by default.", 0.1
    )
    flags.DEFINE_integer("batch_size", 8, "Clips generated together, at most.", lower_bound=1)
    flags.DEFINE_integer("max_waiting", 100, "Jobs that wait, at most; others get a 429.", 1)


def is_loopback(host: str) -> bool:
  """Whether an address can be reached from this machine only."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def listening(host: str, port: int) -> socket.socket:
  """A socket that listens.

  Raises:
    OSError: the address is in use, or not one of this machine.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family, socket.SOCK_STREAM)
  try:
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, port))
    found.listen(128)
  except OSError:
    found.close()
    raise
  return found


def serve(application: Any, queue: Any, server_socket: socket.socket) -> None:
  """Answers requests until SIGTERM, which waits for the running batch, or Ctrl-C, which ends the process at once."""
  import uvicorn  # pyright: ignore[reportMissingImports]

  class Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: Any) -> None:
      queue.take_no_more()
      super().handle_exit(sig, frame)

  # uvicorn sends the signal again once it has closed the connections, when this handler is back.
  signal.signal(signal.SIGTERM, lambda *unused: None)
  settings = uvicorn.Config(
    application,
    log_level="error",
    access_log=False,
    server_header=False,
    lifespan="off",
    limit_concurrency=_MAX_CONNECTIONS,
    timeout_graceful_shutdown=_GRACE,
  )
  queue.start()
  try:
    Server(settings).run(sockets=[server_socket])
    queue.stop()
  except KeyboardInterrupt:
    print("\nserve: interrupted; the same command finishes the jobs", file=sys.stderr, flush=True)
    # The interpreter would abort, because the other thread is computing.
    locks.leave(128 + signal.SIGINT)


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, loads the cascade, and serves."""
  cascade_flags.check(argv, "output=served")
  token = os.environ.get(TOKEN, "").strip()
  if not storage.is_local(FLAGS.output):
    gin_flags.reject(f"--output={FLAGS.output}: expected a folder on a local disk")
  if not token and not is_loopback(FLAGS.host):
    gin_flags.reject(
      f"--host={FLAGS.host} opens the server to the network: set a token that its clients present, "
      f"export {TOKEN}=$(openssl rand -hex 32)"
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    # Optional, as above.
    import python_multipart  # noqa: F401  # pyright: ignore[reportMissingImports]
    import uvicorn  # noqa: F401  # pyright: ignore[reportMissingImports]

    from walt_t5x.generation.serving.server_app import build_app
    from walt_t5x.generation.serving.server_metrics import ServerMetrics
  except ImportError as error:
    sys.exit(
      f"serve: {error.name} is not installed: pip install starlette==1.10.0 uvicorn==0.54.0 python-multipart==0.0.34 "
      "prometheus-client (the extra [serve])"
    )
  with waiting("serve", "importing JAX"):
    from walt_t5x.generation.loading import load_cascade, read_infos
    from walt_t5x.generation.sample_folder import SampleFolder
    from walt_t5x.generation.serving.clip_maker import ClipMaker
    from walt_t5x.generation.serving.job_queue import JobQueue
    from walt_t5x.generation.serving.jobs import FOLDER
    from walt_t5x.generation.serving.videos_api import VideosApi

  lock = storage.join(FLAGS.output, FOLDER, "lock")
  with (
    programs.user_errors("serve"),
    locks.held(lock, program="serve", instead="set another --output", sigterm=False),
  ):
    chosen = cascade_flags.read()
    with waiting("serve", "loading the stages"):
      infos = read_infos(chosen.config)
      cascade = load_cascade(chosen.config, infos, batch_size=FLAGS.batch_size, short_batches=True)
    fps = FLAGS.fps or infos[0].provenance.fps
    if not fps:
      raise ValueError("the frame rate of the training data is unknown: set --fps")
    samples, metrics = SampleFolder(FLAGS.output), ServerMetrics()
    maker = ClipMaker(cascade, chosen.config, samples, fps=fps, details=chosen.details)
    queue = JobQueue(
      maker,
      samples,
      batch_size=FLAGS.batch_size,
      max_waiting=FLAGS.max_waiting,
      observe=metrics.observe,
    )
    metrics.watch(queue)
    model = FLAGS.model or chosen.details.get("preset", {}).get("name", "walt")
    api = VideosApi(maker, queue, samples, model=model)
    application = build_app(api, metrics, host=FLAGS.host, token=token)
    try:
      server_socket = listening(FLAGS.host, FLAGS.port)
    except OSError as error:
      sys.exit(
        f"serve: cannot serve on {FLAGS.host}:{FLAGS.port}, set another --port or --host: {error}"
      )
    shown = f"[{FLAGS.host}]" if ":" in FLAGS.host else FLAGS.host
    port = server_socket.getsockname()[1]
    print(f"serving the model {model} on http://{shown}:{port}/v1", flush=True)
    serve(application, queue, server_socket)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
