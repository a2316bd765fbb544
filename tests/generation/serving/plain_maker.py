"""A maker of clips without a model, and a process that can be killed while it works.

python -m tests.generation.serving.plain_maker FOLDER COUNT    # prints the name of each job that was accepted
"""

import sys
import threading
import time

import numpy as np

from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.serving.job_queue import JobQueue
from walt_t5x.generation.serving.jobs import ClipRequest


def request(prompt="a", **fields):
  return ClipRequest(**{"prompt": prompt, "seed": 0, "stage": "base"} | fields)


class PlainMaker:
  """Stores clips whose pixels are the seed. `rejected` prompts raise; with `held`, each batch waits for `release`."""

  stages = ("base",)

  def __init__(self, samples, *, rejected=(), held=False, seconds=0.0):
    self.samples, self.rejected, self.seconds = samples, rejected, seconds
    self.batches = []
    self.release = threading.Semaphore(0)
    self.started = threading.Semaphore(0)
    self.held = held

  def make(self, jobs, progress):
    self.batches.append([job.request.prompt for job in jobs])
    progress(0, 1, "started")
    self.started.release()
    if self.held:
      self.release.acquire()
    time.sleep(self.seconds)
    for job in jobs:
      if job.request.prompt in self.rejected:
        raise ZeroDivisionError("of this prompt")
    for job in jobs:
      self.samples.write(
        job.index,
        prompt=job.request.prompt,
        videos={"base": np.full((2, 16, 16, 3), job.request.seed, np.uint8)},
        fps=8.0,
        seed=job.request.seed,
        steps={"base": 1},
        fingerprints={},
        details={"job": job.id, "completed_at": time.time()},
      )
    progress(1, 1, "base")
    return {"base": {"sample": 0.5}}


def make_queue(folder, *, batch_size=4, max_waiting=100, **options):
  """A queue that was not started, and its maker."""
  observe = {"observe": options.pop("observe")} if "observe" in options else {}
  samples = SampleFolder(folder)
  maker = PlainMaker(samples, **options)
  queue = JobQueue(maker, samples, batch_size=batch_size, max_waiting=max_waiting, **observe)
  return queue, maker


def main(folder, count):
  queue, _ = make_queue(folder, batch_size=2, seconds=0.1)
  queue.start()
  for number in range(int(count)):
    print(queue.submit(request(f"prompt {number}", seed=number)).job.id, flush=True)
  time.sleep(60)


if __name__ == "__main__":
  main(*sys.argv[1:])
