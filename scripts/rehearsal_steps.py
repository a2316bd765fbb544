"""The steps of a rehearsal: a corpus, what is laid out of it, the commands of docs/reproduce.md, and their report."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reproduce_commands

ROOT = Path(__file__).resolve().parents[1]
# Corpus -> the gin file of its row.
RUNS = {
  "ucf101": "walt_l_ucf101",
  "k600": "walt_l_k600",
  "imagenet": "walt_l_imagenet",
  "t2v": "walt_l_t2v",
}
# Folder in a corpus of videos that may contain ImageNet's.
IMAGES = "imagenet"
# An inception score of images has 10 splits.
SAMPLES = 10


@dataclass(frozen=True)
class Step:
  """A command as the page prints it, and the flags that the rehearsal adds."""

  name: str
  command: str
  added: str = ""

  @property
  def line(self) -> str:
    """What is run."""
    return f"{self.command} {self.added}".rstrip()

  @property
  def program(self) -> str:
    """Name of its module."""
    return self.command.split()[2]

  def flag(self, name: str) -> str:
    """The value of a flag, without quotes; '' if it is not given."""
    found = re.search(rf'{re.escape(name)}=(?:\\?")?([^\s"\\]+)', self.command)
    return found[1] if found else ""


def page_steps(corpus: str) -> list[Step]:
  """The commands of the page, in its order."""
  row = next(row for row in reproduce_commands.ROWS if row.gin == RUNS[corpus])
  pairs = reproduce_commands.all_commands(row)
  return [Step(name, command, added_flags(command)) for name, command in pairs]


def added_flags(command: str) -> str:
  """Counts that a command has as flags: protocols ask for 10,000 to 200,000 samples."""
  if "walt_t5x.evaluate " in command:
    return f"--count={SAMPLES} --folds=1 --reference_count={SAMPLES}"
  # The other requests are lines of text; these are clips.
  return f"--count={SAMPLES}" if "--protocol=k600_frame_prediction" in command else ""


def steps_of(corpus: str, source: Path | None) -> list[Step]:
  """All steps, in order; without a source, look-alikes of the corpora are made."""
  steps = page_steps(corpus)
  runs = [step.flag("--gin.MODEL_DIR") for step in steps if step.program == "walt_t5x.train"]
  samples = [step.flag("--output") for step in steps if step.program == "walt_t5x.generate"]
  flags = [f"--run={run}" for run in runs] + [f"--samples={folder}" for folder in samples]
  title = f"--title={shlex.quote(f'Rehearsal: {corpus}')}"
  made = [(corpus, "corpus")]
  if corpus != "imagenet":
    # Of the image tokenizer.
    made.append(("imagenet", f"corpus/{IMAGES}"))
  look_alikes = [
    Step(f"look-alike of {kind}", f"python -m data.lookalikes {kind} {folder}")
    for kind, folder in made
  ]
  given = shlex.quote(str(source or "corpus"))
  return [
    *([] if source else look_alikes),
    Step("inputs", f"python -m scripts.rehearsal_inputs {corpus} {given}"),
    *steps,
    Step("report", f"python -m walt_t5x.report {' '.join(flags)} {title} --output=report.html"),
  ]


def gin_files(steps: Sequence[Step]) -> list[str]:
  """The gin files that the commands name, except those of gin/runs, and their tokenizers' networks."""
  words = (word for step in steps for word in shlex.split(step.command))
  named = (re.fullmatch(r"--(?:vae_)?gin_file=(gin/(?!runs/).*)", word) for word in words)
  files = {found[1] for found in named if found}
  networks = re.compile(r"include '(gin/models/vae_(?:image|video)\.gin)'")
  texts = [(ROOT / file).read_text(encoding="utf-8") for file in files]
  return sorted(files.union(*(networks.findall(text) for text in texts)))


def weights(steps: Sequence[Step]) -> list[str]:
  """The files and folders of weights and statistics that the commands name."""
  flags = r"--(?:\w+_weights|gin\.\w+_WEIGHTS|source|reference)"
  names = r"\w\S+\.safetensors|\S+\.npz|t5\S+"
  found = (re.findall(rf'{flags}=(?:\\")?({names})', step.command) for step in steps)
  return sorted({name for given in found for name in given})
