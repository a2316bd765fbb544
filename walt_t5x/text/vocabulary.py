"""SentencePiece vocabulary with T5's reserved ids: pad 0, eos 1, unk 2."""

import io
from collections.abc import Iterable

import numpy as np
import sentencepiece
from jaxtyping import Int32

from walt_t5x.files import storage
from walt_t5x.text.config import EOS_ID, PAD_ID, UNK_ID


class Vocabulary:
  """A SentencePiece model; ids equal those of `seqio.SentencePieceVocabulary` (no extra ids)."""

  def __init__(self, model: bytes):
    """Takes the bytes of a `spiece.model`; raises ValueError if the reserved ids are not those of T5."""
    self.model = model
    # The package adds its snake_case names at import time; these names are declared.
    self._processor = sentencepiece.SentencePieceProcessor()
    self._processor.LoadFromSerializedProto(model)
    reserved = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
    if reserved != (PAD_ID, EOS_ID, UNK_ID):
      raise ValueError(
        f"SentencePiece model: got (pad, eos, unk) = {reserved}, expected "
        f"{(PAD_ID, EOS_ID, UNK_ID)}. Point to T5's spiece.model, or train one with these ids."
      )

  @classmethod
  def load(cls, path: storage.PathLike) -> "Vocabulary":
    """Reads a `spiece.model`; raises FileNotFoundError if it does not exist."""
    if not storage.exists(path):
      raise FileNotFoundError(
        f"No SentencePiece model at {path}. A text encoder folder contains config.json, "
        "model.safetensors and spiece.model; copy T5's spiece.model there."
      )
    return cls(storage.read(path))

  def __len__(self) -> int:
    return self._processor.GetPieceSize()

  def encode(self, text: str, max_length: int) -> Int32[np.ndarray, " _"]:
    """Returns the ids of one text with eos appended, without padding.

    A text that is too long loses its last pieces, not the eos (as in Hugging Face's T5 tokenizer
    and in `seqio.preprocessors.append_eos_after_trim`). The empty string gives the eos alone (the null caption).

    Args:
      text: any string.
      max_length: largest number of ids, including the eos; raises ValueError below 1.
    """
    if max_length < 1:
      raise ValueError(f"max_length: got {max_length}, expected at least 1 (the eos).")
    pieces = self._processor.Encode(text)[: max_length - 1]
    return np.array([*pieces, EOS_ID], np.int32)

  def length(self, text: str) -> int:
    """Number of ids of a text of which no piece is lost, including the eos."""
    return len(self._processor.Encode(text)) + 1


def train_vocabulary(texts: Iterable[str], *, max_vocab_size: int = 32_000) -> Vocabulary:
  """Trains a vocabulary in which the words of a small corpus are single pieces.

  Byte-pair merges continue until every word is one piece or the limit is reached (the unigram model
  of T5's vocabulary would keep single letters on such a corpus). Unseen words are split into smaller
  pieces; unseen characters become unk. The result does not depend on the order of the texts.

  Assumption: the paper uses T5's published vocabulary; this one is for random test encoders.

  Args:
    texts: the corpus; empty texts are skipped; raises ValueError if all are.
    max_vocab_size: largest number of pieces (T5: 32,000 before its extra ids).
  """
  corpus = [" ".join(text.split()) for text in texts if text.strip()]
  if not corpus:
    raise ValueError("Vocabulary training: got no text, expected at least one non-empty caption.")
  words = {word for text in corpus for word in text.split()}
  # Each merge adds one piece and a word of n letters needs at most n merges with its '▁'.
  upper_bound = 4 + len(set("".join(words))) + sum(len(word) for word in words)
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=iter(corpus),
    model_writer=model,
    model_type="bpe",
    vocab_size=min(upper_bound, max_vocab_size),
    hard_vocab_limit=False,
    character_coverage=1.0,
    pad_id=PAD_ID,
    eos_id=EOS_ID,
    unk_id=UNK_ID,
    bos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return Vocabulary(model.getvalue())
