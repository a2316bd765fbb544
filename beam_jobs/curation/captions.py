"""Captions of clips by a model behind a server: what is asked, which answers are captions, and the answers so far.

Each answer is stored as soon as it is complete, in one small file per clip, whether it passes the checks or not. The
checks are applied to stored answers, so that a later run asks only what no stored answer settles.
"""

import base64
import dataclasses
import hashlib
import json
import random
import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.curation import chat
from beam_jobs.curation.clip_frames import jpegs
from beam_jobs.shards import progress
from beam_jobs.shards.loading import DecodeSettings, Failure, failure_of, not_admitted
from beam_jobs.sources.members import media_source
from beam_jobs.sources.rows import Row
from walt_t5x.files import damage, storage

# Seconds. Before attempt n + 1 of a request, a time between 0 and FIRST_PAUSE * 2**(n - 1), at most LONGEST_PAUSE, is
# drawn ("full jitter"), and added to what the server asks for, of which LONGEST_WAIT counts.
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 0.5, 30.0, 600.0
# As many clips without an answer, with none in between that has one, are an outage.
OUTAGE = 50
# Beginnings of the Unicode names of a script's letters.
SCRIPTS: Mapping[str, tuple[str, ...]] = {
  "arabic": ("ARABIC",),
  "bengali": ("BENGALI",),
  "chinese": ("CJK",),
  "cyrillic": ("CYRILLIC",),
  "devanagari": ("DEVANAGARI",),
  "greek": ("GREEK",),
  "hebrew": ("HEBREW",),
  "japanese": ("CJK", "HIRAGANA", "KATAKANA"),
  "korean": ("HANGUL",),
  "latin": ("LATIN",),
  "tamil": ("TAMIL",),
  "thai": ("THAI",),
}
# Names of other scripts may occur in a caption.
_SHARE_OF_SCRIPT = 0.8
_SHOWN_CHARACTERS = 200
_ANSWERS = "answers"


class Stopped(Exception):
  """The job ends; `Captioner.error` is why."""


class ServerOutage(Exception):
  """The server has stopped answering."""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A question, and the weight of the caption that it gives."""

  text: str
  weight: float = 1.0

  @classmethod
  def parse(cls, text: str) -> "Prompt":
    """Parses TEXT or TEXT=WEIGHT.

    Raises:
      ValueError: without a text, or with a weight that is not above 0.
    """
    match = re.fullmatch(r"(.*?)(?:=(\d+(?:\.\d+)?))?", text.strip(), re.DOTALL)
    prompt, weight = (match[1].strip(), float(match[2] or 1)) if match else ("", 0.0)
    if not prompt or not 0 < weight < 1e9:
      raise ValueError(
        f"--prompt: got {text!r}, expected TEXT or TEXT=WEIGHT with a weight above 0"
      )
    return cls(prompt, weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks:
  """What an answer has to satisfy to be a caption.

  Attributes:
    min_words, max_words: words between spaces.
    script: of `SCRIPTS`, that of most letters; "any" is not checked.
  """

  min_words: int = 3
  max_words: int = 120
  script: str = "any"

  def reason(self, answer: chat.Answer) -> str:
    """Why an answer is not a caption: 'too_short', 'too_long' or 'bad_language'; "" if it is one."""
    words = len(answer.text.split())
    if words < self.min_words:
      return "too_short"
    if words > self.max_words or answer.finish == "length":
      return "too_long"
    if self.script != "any" and share_of_script(answer.text, self.script) < _SHARE_OF_SCRIPT:
      return "bad_language"
    return ""


def share_of_script(text: str, script: str) -> float:
  """The share of a text's letters that are of a script; 0 without letters."""
  letters = [unicodedata.name(one, "") for one in text if one.isalpha()]
  return sum(name.startswith(SCRIPTS[script]) for name in letters) / max(1, len(letters))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionJob:
  """What is asked about which frames, and how.

  Attributes:
    output: folder of the results.
    media_root: base of relative uris.
    allowed: folders and prefixes of addresses outside of it that rows may name too.
    model: name that the server knows.
    prompts: one caption each.
    frames, side: number of frames, and their longer side in pixels.
    parameters: further fields of a request.
    checks: what answers have to satisfy.
    attempts: answers that fail checks, and requests without an answer, for one caption.
    decoding: how clips are decoded.
  """

  output: str
  media_root: str
  allowed: tuple[str, ...]
  model: str
  prompts: tuple[Prompt, ...]
  frames: int
  side: int
  parameters: Mapping[str, Any]
  checks: Checks
  attempts: int
  decoding: DecodeSettings

  def key_of(self, row: Row) -> str:
    """sha256 of a clip and of what is asked about it, except the prompt."""
    asked = [row.key, row.modality, self.frames, self.side, self.model, self.parameters]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

  def body(self, prompt: Prompt, frames: Sequence[bytes]) -> bytes:
    """A request of the chat completions API: the frames, then the prompt."""
    urls = (f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}" for frame in frames)
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": prompt.text})
    messages = [{"role": "user", "content": content}]
    return json.dumps({**self.parameters, "model": self.model, "messages": messages}).encode()


class Answers:
  """The answers about a clip so far, by prompt, in a file that is replaced with each of them."""

  def __init__(self, output: str, key: str):
    self._key = key
    self._path = storage.join(output, _ANSWERS, key[:2], f"{key}.json")
    self._found: dict[str, list[Any]] = {}
    try:
      self._found = storage.read_json(self._path)
    except (FileNotFoundError, damage.Damaged):
      pass

  def of(self, prompt: Prompt) -> list[chat.Answer]:
    """The answers to a prompt, in order."""
    return [chat.Answer(*answer) for answer in self._found.get(prompt.text, ())]

  def add(self, prompt: Prompt, answer: chat.Answer) -> None:
    """Stores an answer."""
    self._found.setdefault(prompt.text, []).append(answer)
    storage.write(self._path, damage.sealed_json(self._found, indent=0))

  def next_key(self, prompt: Prompt) -> str:
    """Identifies the next answer, which is asked for until there is one."""
    asked = [self._key, prompt.text, len(self.of(prompt))]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Captioner:
  """Captions clips; safe to share among threads. An exception in one of them stops the others.

  Args:
    job: what to ask.
    client: the server.
    max_requests: requests that may be sent; None for any number.

  Attributes:
    requests: those sent so far.
    error: why the job ended early, or None.
  """

  def __init__(self, job: CaptionJob, client: chat.ChatClient, *, max_requests: int | None = None):
    self._job, self._client, self._max_requests = job, client, max_requests
    self.requests, self._unanswered = 0, 0
    self.error: BaseException | None = None
    self._stopped, self._lock = threading.Event(), threading.Lock()
    self._pool = job.decoding.isolated(jpegs)

  def __call__(self, row: Row) -> list[str] | Failure:
    """The captions of a clip, one per prompt, or why it has none; raises `Stopped`."""
    try:
      found, asked = self._captions(row)
    except BaseException as error:
      self.stop(error)
      raise Stopped from error
    progress.ROWS.add(1, skipped=not asked)
    return found

  def stop(self, error: BaseException) -> None:
    """Makes all threads end soon; the first error counts."""
    with self._lock:
      self.error = self.error or error
    self._stopped.set()
    self._client.close()

  def close(self) -> None:
    """Ends the decoding processes."""
    self._pool.close()

  def _captions(self, row: Row) -> tuple[list[str] | Failure, bool]:
    """The result, and whether it took a request."""
    job, captions, frames = self._job, [], None
    if failure := not_admitted(row, job.media_root, job.allowed):
      return failure, False
    answers = Answers(job.output, job.key_of(row))
    for prompt in job.prompts:
      found = self._settled(answers.of(prompt))
      if found is None and frames is None:
        if self.requests == self._max_requests:
          return self._spent(), False
        frames = self._frames(row)
        if isinstance(frames, Failure):
          return frames, True
      if found is None:
        found = self._ask(answers, prompt, job.body(prompt, frames or ()))
      if isinstance(found, Failure):
        return found, frames is not None
      captions.append(found)
    return captions, frames is not None

  def _settled(self, answers: Sequence[chat.Answer]) -> str | Failure | None:
    """The caption among these answers, or the last one's fault; None if another one is to be asked for."""
    reasons = [self._job.checks.reason(answer) for answer in answers]
    if "" in reasons:
      return answers[reasons.index("")].text
    if len(answers) < self._job.attempts:
      return None
    return _failed(answers, reasons[-1])

  def _ask(self, answers: Answers, prompt: Prompt, body: bytes) -> str | Failure:
    """Asks until there is a caption, at most `attempts` times with the answers that are stored."""
    failure, attempts = None, self._job.attempts - len(answers.of(prompt))
    for attempt in range(attempts):
      if not self._may_send():
        return self._spent()
      after = 0.0
      try:
        answer = self._client.ask(body, idempotency_key=answers.next_key(prompt))
      except chat.RejectedRequest as error:
        return self._without_answer(Failure("caption", "rejected_request", str(error)))
      except chat.NoAnswer as error:
        failure, after = Failure("caption", "no_answer", str(error)), error.after
      else:
        self._unanswered = 0
        answers.add(prompt, answer)
        if (found := self._settled(answers.of(prompt))) is not None:
          return found
        failure = _failed(answers.of(prompt), self._job.checks.reason(answer))
      if attempt + 1 < attempts:
        self._pause(attempt, after)
    assert failure is not None
    return self._without_answer(failure) if failure.reason == "no_answer" else failure

  def _may_send(self) -> bool:
    """Counts a request, unless it is one too many."""
    if self._stopped.is_set():
      raise Stopped
    with self._lock:
      if self.requests == self._max_requests:
        return False
      self.requests += 1
      return True

  def _pause(self, attempt: int, after: float) -> None:
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
    if self._stopped.wait(min(after, LONGEST_WAIT) + random.uniform(0, longest)):
      raise Stopped

  def _without_answer(self, failure: Failure) -> Failure:
    """Raises `ServerOutage` if the server seems to be down or misconfigured, so that later rows are not dead too."""
    with self._lock:
      self._unanswered += 1
      if self._unanswered < OUTAGE:
        return failure
    raise ServerOutage(f"the last {OUTAGE} clips got no answer: {failure.message}")

  def _spent(self) -> Failure:
    return Failure("caption", "max_requests", f"{self._max_requests} requests are sent")

  def _frames(self, row: Row) -> list[bytes] | Failure:
    job = self._job
    settings: dict[str, Any] = {"count": job.frames, "side": job.side}
    settings |= {"start": row.start_seconds, "end": row.end_seconds, "crop": row.crop}
    decode = self._pool if job.decoding.isolation == "process" else jpegs
    try:
      return decode(media_source(row.path), row.modality, **settings)
    except Exception as error:
      return failure_of(error)


def _failed(answers: Sequence[chat.Answer], reason: str) -> Failure:
  last = answers[-1].text
  last = last if len(last) <= _SHOWN_CHARACTERS else f"{last[:_SHOWN_CHARACTERS]}..."
  return Failure("caption", reason, f"{len(answers)} answers, the last: {last}")


def captioned(
  row: Row, captions: Sequence[str], prompts: Sequence[Prompt], *, replace: bool
) -> dict[str, Any]:
  """A row of the manifest with captions, after those that it has, or in their place."""
  names = ("caption", "captions", "caption_weights")
  kept = {name: value for name, value in row.raw.items() if name not in names}
  before = ([], []) if replace else ([*row.captions], [*row.caption_weights])
  weights = [prompt.weight for prompt in prompts]
  return kept | {"captions": before[0] + [*captions], "caption_weights": before[1] + weights}
