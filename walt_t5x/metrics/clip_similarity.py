"""Text alignment: similarity between the frames of a clip and its prompt in the embedding space of CLIP.

  similarity = mean over frames of cos( image(frame), text(prompt) )

The CLIP model is read from a local folder in Hugging Face's layout (config.json, model.safetensors, tokenizer files);
nothing is downloaded. Papers on zero-shot text-to-video use ViT-B/32 (CLIPSIM, arXiv:2104.14806).

Frames are resized so that their shorter edge has the network's size (bicubic, PIL), cropped to the central square and
normalized as in the release of arXiv:2103.00020.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from walt_t5x.files.fingerprint import file_sha256

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_HELP = """Text alignment needs a local CLIP model, got --clip_weights={folder}. Put the files config.json,
model.safetensors and the tokenizer files (tokenizer.json, or vocab.json and merges.txt) of
  https://huggingface.co/openai/clip-vit-base-patch32
into a folder and set --clip_weights to it. The protocol `caption_accuracy` needs no weights."""


def preprocess(frames: UInt8[np.ndarray, "T H W 3"], size: int) -> Float[np.ndarray, "T 3 S S"]:
  """Converts RGB bytes to the input of CLIP's image tower, float32, with S = `size`."""
  from PIL import Image

  height, width = frames.shape[1:3]
  short = min(height, width)
  new = (round(width * size / short), round(height * size / short))
  left, top = (new[0] - size) // 2, (new[1] - size) // 2
  mean, deviation = np.array(MEAN, np.float32), np.array(STD, np.float32)
  out = []
  for frame in frames:
    image = Image.fromarray(frame)
    if image.size != new:
      image = image.resize(new, Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + size, top + size))
    out.append((np.asarray(image, np.float32) / 255 - mean) / deviation)
  return np.stack(out).transpose(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class ClipSimilarity:
  """A CLIP model with weights; the fingerprint is the sha256, in hex, of the weight file."""

  fingerprint: str
  _model: Any
  _tokenizer: Any

  @classmethod
  def load(cls, folder: str | Path | None) -> "ClipSimilarity":
    """Loads the model of a folder; raises FileNotFoundError with the expected files, or ImportError without torch."""
    file = Path(folder) / "model.safetensors" if folder else None
    if file is None or not file.is_file():
      raise FileNotFoundError(_HELP.format(folder=folder))
    try:
      import transformers
    except ImportError as error:
      raise ImportError("Text alignment needs: pip install torch transformers") from error
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return cls(file_sha256(file), model, tokenizer)

  def __call__(self, frames: UInt8[np.ndarray, "T H W 3"], prompt: str) -> float:
    """The similarity of one clip, in [-1, 1]; a prompt longer than CLIP's context is truncated."""
    import torch

    pixels = preprocess(frames, self._model.config.vision_config.image_size)
    length = self._model.config.text_config.max_position_embeddings
    tokens = self._tokenizer(
      [prompt], truncation=True, max_length=length, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
      out = self._model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=torch.from_numpy(pixels),
      )
    # The model returns both embeddings normalized.
    return float((out.image_embeds @ out.text_embeds.T).mean())
