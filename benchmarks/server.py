"""The server under 16 concurrent requests of OpenAI's client, killed in the middle: which jobs are lost.

  pip install openai                # the client
  python -m benchmarks.server --work=/tmp/server [--python=.venv/bin/python]

Starts `walt_t5x.serve --preset=shapes`, sends 16 requests at once, kills the server with SIGKILL while it stores the
clips of the first batch, and starts it again. Then it sends requests that must be rejected, and SIGTERM while a batch
runs. The server runs with `--python`. Writes server.json and .md next to this file.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
REQUESTS, BATCH, AT_KILL = 16, 8, 3
COLORS, MOVES = ("red", "blue", "green", "yellow"), ("left", "right", "up", "down")
LIMIT = 600  # Seconds.
# Long waits, and the lock of the server that was killed.
EXPECTED = re.compile(r"serve: (loading|importing|reading) |/lock has expired: ")


class Server:
  """A running server, and the files of what it prints."""

  def __init__(self, work: Path, python: str):
    self.output, self.errors = work / "served", work / "stderr.txt"
    command = [python, "-m", "walt_t5x.serve", "--preset=shapes", f"--output={self.output}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with self.errors.open("ab") as stream:
      self.process = subprocess.Popen(
        [*command, "--port=0", f"--batch_size={BATCH}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stream,
        text=True,
      )
    assert self.process.stdout is not None
    line = self.process.stdout.readline()
    if "http://" not in line:
      raise SystemExit(f"server: it did not start, see {self.errors}")
    self.url = line[line.index("http://") :].strip()

  def stored(self) -> set[str]:
    """Sidecars of finished clips."""
    return {file.name for file in self.output.glob("[0-9]*.json")}

  def figures(self) -> dict[str, float]:
    """What Prometheus would read."""
    with urllib.request.urlopen(self.url.replace("/v1", "/metrics")) as answer:
      lines = answer.read().decode().splitlines()
    found = (re.fullmatch(r"([^#]\S*) (\S+)", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}

  def batches(self, names: Iterable[str]) -> dict[int, int]:
    """Clips per batch -> batches, of the clips with these sidecars."""
    sizes = [json.loads((self.output / name).read_text())["batch_size"] for name in names]
    return {size: count // size for size, count in sorted(Counter(sizes).items())}


def wait(what: str, happened: Callable[[], Any], *, pause: float = 0.005) -> float:
  """Seconds until `happened()`, which is asked again after each pause."""
  started = time.monotonic()
  while not happened():
    if time.monotonic() - started > LIMIT:
      raise SystemExit(f"server: {what} did not happen within {LIMIT} s")
    time.sleep(pause)
  return time.monotonic() - started


@contextlib.contextmanager
def client_of(server: Server) -> Iterator[Any]:
  """OpenAI's client; it does not repeat requests."""
  try:
    import openai  # pyright: ignore[reportMissingImports]
  except ImportError:
    sys.exit("server: openai is not installed: pip install openai")
  # The client announces the end of OpenAI's own service.
  warnings.simplefilter("ignore", DeprecationWarning)
  with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
    yield client


def create(client: Any, number: int) -> str:
  """Sends the request with this number; returns the name of its job."""
  prompt = f"a {COLORS[number % 4]} square moves {MOVES[number // 4 % 4]}"
  return client.videos.create(prompt=prompt, model="shapes", extra_body={"seed": number}).id


def rejected(client: Any) -> dict[str, int]:
  """Request -> the status of its answer; 0 for one that was accepted."""
  import openai  # pyright: ignore[reportMissingImports]

  calls = {
    "a prompt of 1 MB": lambda: client.videos.create(prompt="a" * 10**6),
    "a body of 40 MB": lambda: client.videos.create(prompt="a", input_reference=b"a" * 40 * 10**6),
    "no prompt": lambda: client.videos.create(prompt=""),
    "a seed of -1": lambda: client.videos.create(prompt="a", extra_body={"seed": -1}),
    "an unknown field": lambda: client.videos.create(prompt="a", extra_body={"sed": 1}),
    "another model": lambda: client.videos.create(prompt="a", model="sora-2"),
    "4 seconds": lambda: client.videos.create(prompt="a", seconds="4"),
    "an image that is none": lambda: client.videos.create(prompt="a", input_reference=b"no image"),
    "the name ../../etc/passwd": lambda: client.videos.retrieve("../../etc/passwd"),
  }
  found = {}
  for what, call in calls.items():
    try:
      call()
      found[what] = 0
    except openai.APIStatusError as error:
      found[what] = error.status_code
  return found


def main() -> None:
  """Runs the server, and prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--work", type=Path, required=True, help="new folder for the server's files")
  parser.add_argument("--python", default=sys.executable, help="interpreter of the server")
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  args.work.mkdir(parents=True)

  server = Server(args.work, args.python)
  with client_of(server) as client, ThreadPoolExecutor(REQUESTS) as pool:
    started = time.monotonic()
    names = list(pool.map(lambda number: create(client, number), range(REQUESTS)))
    accepted = time.monotonic() - started
  wait("a clip", lambda: len(server.stored()) >= AT_KILL)
  server.process.send_signal(signal.SIGKILL)
  server.process.wait()
  before = server.stored()

  server = Server(args.work, args.python)
  with client_of(server) as client, ThreadPoolExecutor(REQUESTS) as pool:
    finished = wait(
      "the end of all jobs",
      lambda: {video.status for video in client.videos.list()} <= {"completed", "failed"},
      pause=0.5,
    )
    clips = {name: client.videos.download_content(name).read() for name in names}
    completed = sum(clip[4:8] == b"ftyp" for clip in clips.values())
    listed = {video.id for video in client.videos.list(limit=5)}
    batches = server.batches(server.stored() - before)
    statuses = rejected(client)
    more = list(pool.map(lambda number: create(client, number), range(REQUESTS)))
  wait("a batch", lambda: server.figures()['walt_jobs{status="in_progress"}'])
  running = int(server.figures()['walt_jobs{status="in_progress"}'])
  server.process.send_signal(signal.SIGTERM)
  code = server.process.wait(LIMIT)
  stored = len(server.stored())
  lines = [line for line in server.errors.read_text().splitlines() if not EXPECTED.search(line)]

  result = {
    "requests": REQUESTS,
    "accepted": len(set(names)),
    "seconds_to_accept": round(accepted, 2),
    "stored_at_the_kill": len(before),
    "completed": completed,
    "distinct_clips": len(set(clips.values())),
    "lost": len(set(names) - listed) + REQUESTS - completed,
    "batches_after_the_kill": {str(size): count for size, count in batches.items()},
    "seconds_after_the_restart": round(finished, 1),
    "rejected": statuses,
    "sigterm": {
      "exit": code,
      "running": running,
      "finished": stored - REQUESTS,
      "kept": REQUESTS + len(more) - stored,
    },
    "lines_on_stderr": lines,
  }
  formed = ", ".join(f"{count} of {size} clips" for size, count in batches.items())
  page = [
    "# The server, killed",
    "",
    f"`python -m benchmarks.server`: {REQUESTS} concurrent requests of OpenAI's Python client to `walt_t5x.serve",
    f"--preset=shapes --batch_size={BATCH}`, SIGKILL while it stored the clips of its first batch, and the same",
    "command again.",
    "",
    "| | |",
    "| --- | --- |",
    f"| requests, accepted within {accepted:.2f} s | {len(set(names))} |",
    f"| clips on disk at the kill, of a batch of {BATCH} | {len(before)} |",
    f"| clips in the end, all different | {completed} |",
    f"| jobs lost | {result['lost']} |",
    f"| batches after the kill | {formed} |",
    f"| SIGTERM with {running} clips running | exit code {code}, {stored - REQUESTS} finished, "
    f"{REQUESTS + len(more) - stored} kept |",
    "",
    "| a request with | answer |",
    "| --- | --- |",
    *(f"| {what} | {status} |" for what, status in statuses.items()),
  ]
  results.write(args.output, "server", "\n".join(page) + "\n", result)
  wrong = [what for what, status in statuses.items() if not 400 <= status < 500]
  if result["lost"] or len(set(clips.values())) < REQUESTS or code or wrong or lines:
    raise SystemExit(f"server: a job was lost, or {wrong}, or {lines}")


if __name__ == "__main__":
  main()
