"""Jobs on disk: a request for a clip is accepted once its file exists, and done once its sample does.

jobs/<id>.json    what is requested, the number of the sample, and the error if it failed
jobs/<id>.image   the image that the clip starts from, written before

The files are next to the samples, so a program that was killed finds out at its next start what is left to do.
"""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from walt_t5x.files import storage

FOLDER = "jobs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRequest:
  """A clip that somebody wants.

  Attributes:
    prompt: what to show.
    seed: of the noise, from 0 to 2^32 - 1.
    stage: the last stage to run.
    extensions: number of extensions.
    image: path of the image that the clip starts from.
  """

  prompt: str
  seed: int
  stage: str
  extensions: int = 0
  image: str | None = None

  @property
  def kind(self) -> tuple[str, int, bool]:
    """What the clips of one batch have in common."""
    return self.stage, self.extensions, self.image is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipJob:
  """An accepted request.

  Attributes:
    id: its name, which cannot be guessed.
    index: number of its sample.
    created: when it was accepted, in seconds since 1970.
    error: why it failed, if it did.
    ended: when it failed.
  """

  id: str
  index: int
  created: float
  request: ClipRequest
  error: str | None = None
  ended: float | None = None


def new_id() -> str:
  """A name with 128 random bits."""
  return f"video_{secrets.token_hex(16)}"


class JobFolder:
  """The files of the jobs of a folder of samples."""

  def __init__(self, samples: storage.PathLike):
    self.path = storage.join(samples, FOLDER)

  def write(self, job: ClipJob, image: bytes | None = None) -> ClipJob:
    """Writes a job, after the image that it starts from; returns it with the path of that image.

    Raises:
      CannotWrite: the file system rejects it; nothing is left.
    """
    if image is not None:
      path = storage.join(self.path, f"{job.id}.image")
      storage.write(path, image)
      job = dataclasses.replace(job, request=dataclasses.replace(job.request, image=path))
    try:
      storage.write_json(self._file(job), dataclasses.asdict(job), seal=True)
    except OSError:
      if image is not None:
        self.delete(job)
      raise
    return job

  def read(self) -> Sequence[ClipJob]:
    """All jobs in the order in which they were accepted.

    Raises:
      Damaged: a file was changed after it was written.
    """
    files = [name for name in storage.names(self.path) if name.endswith(".json")]
    trees = storage.for_each(lambda name: storage.read_json(storage.join(self.path, name)), files)
    return sorted(map(_job, trees), key=lambda job: job.index)

  def delete(self, job: ClipJob) -> None:
    """Deletes a job's file, then its image."""
    storage.delete(self._file(job))
    if job.request.image is not None:
      storage.delete(job.request.image)

  def _file(self, job: ClipJob) -> str:
    return storage.join(self.path, f"{job.id}.json")


def _job(tree: dict[str, Any]) -> ClipJob:
  request = ClipRequest(**tree.pop("request"))
  return ClipJob(request=request, **tree)
