"""Text in a clip: `--score=beam_jobs.curation.text_area:TextArea`.

The networks are PP-OCRv4's, of rapidocr-onnxruntime, whose weights are in that package. They compute in floating point:
values may differ a little between CPUs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Frames in the middle of equal parts of a clip.
_FRAMES = 3
# Smaller frames are enlarged to this shorter side. In blurrier ones, more is taken for text.
_SIDE = 384


class TextArea:
  """`text`: share of the picture in boxes with text that can be read, in [0, 1], on average over three frames."""

  def __init__(self):
    try:
      from rapidocr_onnxruntime import RapidOCR  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise ValueError(
        f"--score: {__name__}:TextArea needs rapidocr-onnxruntime, for Python up to 3.12: "
        "pip install -r requirements-curate.lock"
      ) from error
    # Workers have a thread for each video.
    threads: dict[str, Any] = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    self._read = RapidOCR(det_limit_side_len=_SIDE, **threads)

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    numbers = sorted({(2 * i + 1) * len(frames) // (2 * _FRAMES) for i in range(_FRAMES)})
    return {"text": sum(self._share(frames[number]) for number in numbers) / len(numbers)}

  def _share(self, frame: np.ndarray) -> float:
    import cv2

    # Blue first. Faces and windows are taken for text too, but the recognizer can read nothing in most of them.
    found, _ = self._read(np.ascontiguousarray(frame[..., ::-1]), use_cls=False)
    covered = np.zeros(frame.shape[:2], np.uint8)
    for box, *_ in found or ():
      cv2.fillPoly(covered, [np.array(box, np.int32)], 1)
    return int(covered.sum()) / covered.size
