"""ImageNet as Kaggle has it: training images in synset folders, flat `val` and `test`, labels in a table."""

from data.lookalikes import media
from data.lookalikes.corpus import NO_ROW, WRITTEN, Corpus

MANIFEST = "ILSVRC/Data/CLS-LOC"
SOURCES = {MANIFEST: ("--class_names=LOC_synset_mapping.txt",)}
SYNSETS = {
  "n01440764": "tench, Tinca tinca",
  "n01443537": "goldfish, Carassius auratus",
  "n01484850": "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
  "n02099601": "golden retriever",
  "n02123045": "tabby, tabby cat",
  "n02504458": "African elephant, Loxodonta africana",
}
_PER_CLASS, _VALIDATION, _TEST = 5, 12, 3
_SIZES = ((375, 500), (500, 375), (333, 500), (64, 80))
# Oddities of the real training set: kind -> how Pillow writes them.
_ODD = {
  "cmyk": {"mode": "CMYK"},
  "png_named_jpeg": {"kind": "PNG"},
  "gray": {"mode": "L"},
  "exif_turned": {"exif": media.exif_orientation(6)},
}


def write(corpus: Corpus) -> None:
  """Writes `ILSVRC`, `LOC_synset_mapping.txt` and `LOC_val_solution.csv`."""
  names = list(SYNSETS)
  listed: dict[str, list[str]] = {"train_cls": [], "val": [], "test": []}
  for synset in names:
    for number in range(_PER_CLASS):
      image = f"{synset}/{synset}_{17 * number + 9}"
      corpus.write(f"{MANIFEST}/train/{image}.JPEG", _picture(corpus))
      listed["train_cls"].append(image)
  for number, (kind, options) in enumerate(_ODD.items()):
    image = f"{names[number]}/{names[number]}_{1000 + number}"
    corpus.write(f"{MANIFEST}/train/{image}.JPEG", media.picture(corpus.scene(), **options))
    listed["train_cls"].append(image)
    corpus.note(kind, MANIFEST, f"train/{image}.JPEG", WRITTEN)
  solution = []
  for number in range(1, _VALIDATION + 1):
    image = f"ILSVRC2012_val_{number:08d}"
    corpus.write(f"{MANIFEST}/val/{image}.JPEG", _picture(corpus))
    listed["val"].append(image)
    # A box per object, each with the class of the image.
    boxes = " ".join(f"{names[number % len(names)]} {k} 1 90 80" for k in range(1 + number % 2))
    solution.append((image, f"{boxes} "))
  corpus.note("flat_val", MANIFEST, "val/ILSVRC2012_val_00000001.JPEG", WRITTEN)
  for number in range(1, _TEST + 1):
    image = f"ILSVRC2012_test_{number:08d}"
    corpus.write(f"{MANIFEST}/test/{image}.JPEG", _picture(corpus))
    listed["test"].append(image)
  if corpus.faults:
    _plant(corpus, solution)
  for split, images in listed.items():
    lines = "".join(f"{image} {number}\n" for number, image in enumerate(images, 1))
    corpus.write(f"ILSVRC/ImageSets/CLS-LOC/{split}.txt", lines)
  # The table of the real set is in no order either.
  corpus.write_table("LOC_val_solution.csv", [("ImageId", "PredictionString"), *solution[::-1]])
  mapping = "".join(f"{synset} {words}\n" for synset, words in SYNSETS.items())
  corpus.write("LOC_synset_mapping.txt", mapping)


def _picture(corpus: Corpus) -> bytes:
  seed = corpus.scene()
  return media.picture(seed, size=_SIZES[seed % len(_SIZES)])


def _plant(corpus: Corpus, solution: list[tuple[str, str]]) -> None:
  from PIL import PngImagePlugin

  def plant(kind: str, path: str, content: bytes, expect: str) -> None:
    corpus.write(f"{MANIFEST}/{path}", content)
    corpus.note(kind, MANIFEST, path, expect)

  sound = _picture(corpus)
  first = next(iter(SYNSETS))
  bad_exif = media.picture(corpus.scene(), exif=media.exif_orientation(6, bad_number=True))
  for number, (kind, content, expect) in enumerate(
    (
      ("corrupt_jpeg", sound[:3] + bytes(range(256)) * 2, "corrupt"),
      ("truncated_jpeg", sound[: len(sound) // 2], "truncated"),
      ("zero_bytes", b"", "empty"),
      ("html_page", media.HTML, "not_media"),
      ("exif_bad_number", bad_exif, WRITTEN),
      # The job enlarges the images of ImageNet (--allow_upscale).
      ("too_small", media.picture(corpus.scene(), size=(12, 9)), WRITTEN),
    )
  ):
    plant(kind, f"train/{first}/{first}_{2000 + number}.JPEG", content, expect)
  text = PngImagePlugin.PngInfo()
  text.add_text("Comment", "x" * 2**21, zip=True)
  long_text = media.picture(corpus.scene(), kind="PNG", pnginfo=text)
  plant("png_long_text", f"train/{first}/{first}_3000.JPEG", long_text, WRITTEN)
  plant("hidden_file", f"train/{first}/._{first}_9.JPEG", bytes(163), NO_ROW)
  plant("hidden_folder", "train/.ipynb_checkpoints/a-checkpoint.JPEG", sound, NO_ROW)
  plant("other_extension", f"train/{first}/Thumbs.db", bytes(99), NO_ROW)
  plant("unknown_class", "train/n99999999/n99999999_1.JPEG", sound, "bad_source_row")
  plant("no_label", "val/ILSVRC2012_val_00000098.JPEG", sound, "bad_source_row")
  plant("wrong_label", "val/ILSVRC2012_val_00000099.JPEG", sound, "bad_source_row")
  solution.append(("ILSVRC2012_val_00000099", "n00000000 1 1 90 80 "))
