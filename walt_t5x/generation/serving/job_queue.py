"""The queue between those who want clips and the one thread that generates them, batch by batch.

The oldest waiting job leads a batch; the next ones of its kind fill it. A job that ends is never started again, and all
others are started again after a kill (`jobs`).
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from absl import logging

from walt_t5x.files import storage
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.serving.jobs import ClipJob, ClipRequest, JobFolder, new_id

QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
STATUSES = (QUEUED, IN_PROGRESS, COMPLETED, FAILED)
# Requests that are sent together arrive within milliseconds.
_GATHER_SECONDS = 0.05
_MOST_ERROR = 500
# (steps done, steps, what was done last)
Progress = tuple[int, int, str]


class QueueFull(ValueError):
  """Too many jobs wait; `retry_after` is when one of them may be done, in seconds."""

  def __init__(self, waiting: int, retry_after: float):
    super().__init__(f"{waiting} clips are waiting: try again in {retry_after:.0f} s")
    self.retry_after = retry_after


class JobIsRunning(ValueError):
  """A job cannot be deleted while its clip is generated."""


class Maker(Protocol):
  """What generates clips; `ClipMaker` does."""

  def make(
    self, jobs: Sequence[ClipJob], progress: Callable[[int, int, str], None]
  ) -> Mapping[str, Mapping[str, float]]:
    """Stores the clips of jobs of one kind as samples; returns stage -> part of the work -> seconds."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedBatch:
  """Figures of a batch: its number of clips, and the seconds of each part of each stage."""

  clips: int
  seconds: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(kw_only=True, eq=False)
class TrackedJob:
  """A job and what is known about it.

  Attributes:
    status: one of `STATUSES`.
    progress: what was done so far, oldest first.
    ended: when it was completed or failed, in seconds since 1970.
  """

  job: ClipJob
  status: str = QUEUED
  progress: list[Progress] = dataclasses.field(default_factory=list)
  ended: float | None = None

  @property
  def done(self) -> bool:
    """Whether its clip exists, or never will."""
    return self.status in (COMPLETED, FAILED)

  @property
  def share(self) -> float:
    """The part of the work that was done, from 0 to 1."""
    if self.status == COMPLETED:
      return 1.0
    done, total, _ = self.progress[-1] if self.progress else (0, 1, "")
    return done / total


class JobQueue:
  """Jobs that wait, run and have ended, and the thread that runs them.

  Args:
    maker: generates the clips.
    samples: where they are stored, with the jobs of earlier processes.
    batch_size: most clips per batch.
    max_waiting: most jobs that wait.
    observe: called with the figures of each batch.

  Raises:
    Damaged: a job of an earlier process cannot be read.
  """

  def __init__(
    self,
    maker: Maker,
    samples: SampleFolder,
    *,
    batch_size: int,
    max_waiting: int,
    observe: Callable[[FinishedBatch], None] = lambda batch: None,
  ):
    self._maker, self._samples, self._observe = maker, samples, observe
    self._batch_size, self._max_waiting = batch_size, max_waiting
    self._folder = JobFolder(samples.path)
    self._tracked = {job.id: self._found(job) for job in self._folder.read()}
    self._waiting = [one for one in self._tracked.values() if one.status == QUEUED]
    indices = [int(file.stem) for file in samples.path.glob("[0-9]*.json")]
    self._next = 1 + max([*indices, *(one.job.index for one in self._tracked.values())], default=-1)
    self._last_seconds = 1.0
    self._changed = threading.Condition()
    self._stopping = False
    self._thread: threading.Thread | None = None

  def start(self) -> None:
    """Starts the thread that generates the clips, unless it runs."""
    with self._changed:
      if self._thread is None:
        self._thread = threading.Thread(target=self._run, name="clips", daemon=True)
        self._thread.start()

  def take_no_more(self) -> None:
    """Lets the running batch be the last one. Safe in a signal handler: it takes no lock."""
    self._stopping = True

  def stop(self) -> None:
    """Waits until the running batch has ended; the waiting jobs stay on disk for the next start."""
    self.take_no_more()
    with self._changed:
      self._changed.notify_all()
    if self._thread is not None:
      self._thread.join()

  def submit(self, request: ClipRequest, *, image: bytes | None = None) -> TrackedJob:
    """Accepts a checked request; when this returns, its file exists.

    Args:
      image: the content of the image that the clip starts from.

    Raises:
      QueueFull: too many jobs wait.
      CannotWrite: the file system rejects the job.
    """
    with self._changed:
      if len(self._waiting) >= self._max_waiting:
        raise QueueFull(len(self._waiting), max(1.0, self._last_seconds))
      job = ClipJob(id=new_id(), index=self._next, created=time.time(), request=request)
      # Written under the lock: jobs are then on disk in the order of their numbers.
      tracked = TrackedJob(job=self._folder.write(job, image))
      self._next += 1
      self._tracked[job.id] = tracked
      self._waiting.append(tracked)
      self._changed.notify_all()
      return tracked

  def find(self, id: str) -> TrackedJob | None:
    """The job of a name, None if there is none."""
    return self._tracked.get(id)

  def jobs(self) -> list[TrackedJob]:
    """All jobs, oldest first."""
    with self._changed:
      return list(self._tracked.values())

  def watch(self, tracked: TrackedJob) -> Iterator[Progress]:
    """The progress of a job until it has ended."""
    seen, done = 0, False
    while not done:
      with self._changed:
        while not tracked.done and len(tracked.progress) == seen:
          self._changed.wait()
        new, done = tracked.progress[seen:], tracked.done
      yield from new
      seen += len(new)

  def delete(self, tracked: TrackedJob) -> None:
    """Deletes a job, and its sample if it has one.

    Raises:
      JobIsRunning: its clip is being generated.
    """
    with self._changed:
      if tracked.status == IN_PROGRESS:
        raise JobIsRunning("the clip is being generated: delete it when it is done")
      if tracked in self._waiting:
        self._waiting.remove(tracked)
      self._tracked.pop(tracked.job.id, None)
      # First the job: without its sample, it would be generated again.
      self._folder.delete(tracked.job)
      self._samples.delete(tracked.job.index)

  def _found(self, job: ClipJob) -> TrackedJob:
    """A job of an earlier process."""
    if job.error is not None:
      return TrackedJob(job=job, status=FAILED, ended=job.ended)
    return self._completed(TrackedJob(job=job))

  def _completed(self, tracked: TrackedJob) -> TrackedJob:
    """The job, completed if all files of its sample exist."""
    index = tracked.job.index
    if self._samples.finished(index):
      sidecar = storage.read_json(self._samples.sidecar(index))
      if sidecar.get("job") == tracked.job.id:
        tracked.status, tracked.ended = COMPLETED, sidecar["completed_at"]
    return tracked

  def _run(self) -> None:
    while batch := self._next_batch():
      self._make(batch)

  def _next_batch(self) -> list[TrackedJob]:
    """The jobs of the next batch; none once the queue stops."""
    with self._changed:
      while not self._stopping:
        # A signal handler cannot notify, so nothing waits forever.
        if not self._changed.wait_for(lambda: self._waiting or self._stopping, timeout=1):
          continue
        self._changed.wait_for(
          lambda: len(self._waiting) >= self._batch_size or self._stopping, timeout=_GATHER_SECONDS
        )
        # They may have been deleted.
        if not self._waiting or self._stopping:
          continue
        kind = self._waiting[0].job.request.kind
        alike = [one for one in self._waiting if one.job.request.kind == kind]
        batch = alike[: self._batch_size]
        for one in batch:
          one.status = IN_PROGRESS
          self._waiting.remove(one)
        return batch
    return []

  def _make(self, batch: Sequence[TrackedJob]) -> None:
    """Generates the clips of a batch; if that fails, one by one, so that one job cannot fail others."""

    def progress(done: int, total: int, what: str) -> None:
      with self._changed:
        for one in batch:
          one.progress.append((done, total, what))
        self._changed.notify_all()

    started, failure = time.monotonic(), None
    try:
      seconds = self._maker.make([one.job for one in batch], progress)
      self._observe(FinishedBatch(clips=len(batch), seconds=seconds))
    except Exception as error:  # Whatever it is, the jobs behind it have to run.
      failure = error
    self._last_seconds = time.monotonic() - started
    with self._changed:
      left = [one for one in batch if not self._completed(one).done]
      if len(batch) == 1 and left:
        self._fail(left[0], failure)
      self._changed.notify_all()
    if len(batch) > 1:
      for one in left:
        self._make([one])

  def _fail(self, tracked: TrackedJob, error: Exception | None) -> None:
    text = f"{type(error).__name__}: {error}"[:_MOST_ERROR]
    logging.error("the clip of %s failed: %s", tracked.job.id, text)
    tracked.job = dataclasses.replace(tracked.job, error=text, ended=time.time())
    tracked.status, tracked.ended = FAILED, tracked.job.ended
    try:
      self._folder.write(tracked.job)
    except OSError as problem:  # It is tried again after the next start.
      logging.error("the failure of %s cannot be recorded: %s", tracked.job.id, problem)
