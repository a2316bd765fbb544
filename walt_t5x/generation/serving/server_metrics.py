"""The figures of a server for Prometheus."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from walt_t5x.generation.serving.job_queue import QUEUED, STATUSES, FinishedBatch, JobQueue

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CLIPS = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class ServerMetrics:
  """Batches as they are finished, and the jobs of a queue when the figures are read.

  walt_jobs{status}                    jobs by status
  walt_queue_depth                     jobs that wait
  walt_batch_size                      histogram of the clips per batch
  walt_stage_seconds{stage, part}      histogram of the seconds per batch to sample, decode and encode
  """

  def __init__(self):
    self._registry = CollectorRegistry()
    self._sizes = Histogram(
      "walt_batch_size", "Clips per batch.", buckets=_CLIPS, registry=self._registry
    )
    self._seconds = Histogram(
      "walt_stage_seconds",
      "Seconds per batch of a stage's sampling, decoding and encoding.",
      ("stage", "part"),
      buckets=_SECONDS,
      registry=self._registry,
    )

  def observe(self, batch: FinishedBatch) -> None:
    """Counts a batch."""
    self._sizes.observe(batch.clips)
    for stage, parts in batch.seconds.items():
      for part, seconds in parts.items():
        self._seconds.labels(stage, part).observe(seconds)

  def watch(self, queue: JobQueue) -> None:
    """Adds the jobs of a queue."""
    self._registry.register(_Jobs(queue))

  def text(self) -> bytes:
    """All figures in Prometheus's text format."""
    return generate_latest(self._registry)


class _Jobs:
  """A collector, in the sense of prometheus_client."""

  def __init__(self, queue: JobQueue):
    self._queue = queue

  def collect(self) -> Iterator[GaugeMetricFamily]:
    counts = Counter(one.status for one in self._queue.jobs())
    jobs = GaugeMetricFamily("walt_jobs", "Jobs by status.", labels=["status"])
    for status in STATUSES:
      jobs.add_metric([status], counts[status])
    yield jobs
    yield GaugeMetricFamily("walt_queue_depth", "Jobs that wait.", value=counts[QUEUED])
