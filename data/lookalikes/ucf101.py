"""UCF-101: class folders of XviD AVI at 320 x 240 and 25 frames per second, and the lists of its first split."""

from typing import Any

from data.lookalikes import media
from data.lookalikes.corpus import NO_ROW, WRITTEN, Corpus, broken_videos

MANIFEST = "UCF-101"
SOURCES = {MANIFEST: ("--validation_list=ucfTrainTestlist/testlist01.txt",)}
# Class -> its number in classInd.txt. The files of HandstandPushups spell it with a capital S.
CLASSES = {
  "ApplyEyeMakeup": 1,
  "Archery": 3,
  "BaseballPitch": 7,
  "Basketball": 8,
  "HandstandPushups": 37,
  "PlayingGuitar": 63,
  "TaiChi": 91,
  "YoYo": 101,
}
# Groups of the test split, then of the training split: as in the real lists, a group is in one of them.
_GROUPS = {1: "test", 2: "test", 8: "train", 9: "train"}
# The shortest real clip has 29 frames.
_FRAMES = (29, 50, 75, 100)


def write(corpus: Corpus) -> None:
  """Writes `UCF-101` and `ucfTrainTestlist`."""
  lists: dict[str, list[str]] = {"train": [], "test": []}
  for name, number in CLASSES.items():
    for group, split in _GROUPS.items():
      file = f"{name}/v_{_spelled(name)}_g{group:02d}_c01.avi"
      frames = _FRAMES[(number + group) % len(_FRAMES)] if corpus.seconds is None else _FRAMES[1]
      corpus.write(f"{MANIFEST}/{file}", _clip(corpus, frames))
      lists[split].append(f"{file} {number}" if split == "train" else file)
  corpus.note("capital_s", MANIFEST, "HandstandPushups/v_HandStandPushups_g08_c01.avi", WRITTEN)
  if corpus.faults:
    _plant(corpus, lists)
  for split, lines in lists.items():
    corpus.write(f"ucfTrainTestlist/{split}list01.txt", "".join(f"{line}\r\n" for line in lines))
  classes = "".join(f"{number} {name}\r\n" for name, number in CLASSES.items())
  corpus.write("ucfTrainTestlist/classInd.txt", classes)


def _spelled(name: str) -> str:
  return name.replace("Handstand", "HandStand")


def _clip(corpus: Corpus, frames: int, *, rate: int = 25, **options: Any) -> bytes:
  return media.video(
    corpus.scene(), num_frames=frames, rate=rate, container="avi", b_frames=1, **options
  )


def _plant(corpus: Corpus, lists: dict[str, list[str]]) -> None:
  def plant(kind: str, content: bytes, expect: str, place: str = "") -> None:
    number = 50 + len(corpus.odd)
    file = place or f"Archery/v_Archery_g{number}_c01.avi"
    corpus.write(f"{MANIFEST}/{file}", content)
    if not place:
      lists["train"].append(f"{file} {CLASSES['Archery']}")
    corpus.note(kind, MANIFEST, file, expect)

  clip = _clip(corpus, 50)
  for kind, (content, reason) in broken_videos(clip, corpus.scene(), container="avi").items():
    # The job enlarges the clips of UCF-101 (--allow_upscale).
    plant(kind, content, WRITTEN if kind == "too_small" else reason)
  plant("low_frame_rate", _clip(corpus, 30, rate=12), "low_frame_rate")
  plant("packed_bitstream", _clip(corpus, 60, packed=True), WRITTEN)
  plant("other_extension", clip, NO_ROW, "Archery/v_Archery_g01_c01.avi.part")
  plant("hidden_file", bytes(163), NO_ROW, "Archery/._v_Archery_g01_c01.avi")
  checkpoint = ".ipynb_checkpoints/v_Archery_g01_c01-checkpoint.avi"
  plant("hidden_folder", clip, NO_ROW, checkpoint)
  absent = "Archery/v_Archery_g02_c07.avi"
  lists["test"].append(absent)
  corpus.note("listed_but_missing", MANIFEST, absent, NO_ROW)
