"""Token ids compared with seqio; words of a small corpus are single pieces."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from walt_t5x.text.vocabulary import Vocabulary, train_vocabulary

WORDS = "red green blue yellow white purple circle square triangle star left right up down".split()
CAPTIONS = [
  f"a {c} {s} moves {d}, slowly." for c in WORDS[:6] for s in WORDS[6:10] for d in WORDS[10:]
]
TEXTS = [
  *CAPTIONS[::17],
  "",
  " ",
  "  two   spaces ",
  "Red CIRCLE",
  "ﬁne ＦＵＬＬ width ①",
  "日本語 and émigré",
  "tab\tnewline\nend",
  "</s> <pad> <unk> <extra_id_0>",
  "▁ underline",
]


@pytest.fixture(scope="module")
def vocabulary():
  return train_vocabulary(CAPTIONS)


def test_ids_equal_seqio(vocabulary, tmp_path):
  seqio = pytest.importorskip("seqio")
  path = tmp_path / "spiece.model"
  path.write_bytes(vocabulary.model)
  reference = seqio.SentencePieceVocabulary(str(path), extra_ids=0)
  assert (reference.pad_id, reference.eos_id, reference.unk_id) == (0, 1, 2)
  assert reference.vocab_size == len(vocabulary)
  ours = Vocabulary.load(path)
  for text in TEXTS:
    assert list(ours.encode(text, 512)) == [*reference.encode(text), 1], text
  for text in TEXTS[-3:]:
    assert list(ours.encode(text, 512)) == [*reference.encode_tf(text).numpy(), 1], text


def test_words_of_a_small_corpus_are_single_pieces(vocabulary):
  processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
  for word in ["a", "moves", "slowly", *WORDS]:
    ids = vocabulary.encode(word, 64)
    assert [processor.IdToPiece(int(i)) for i in ids] == ["▁" + word, "</s>"]
  assert processor.Decode(vocabulary.encode(CAPTIONS[0], 64)[:-1].tolist()) == CAPTIONS[0]


def test_unseen_words_are_split_and_unseen_letters_are_unk(vocabulary):
  ids = vocabulary.encode("redder", 64)
  assert 2 not in ids and len(ids) > 2
  assert 2 in vocabulary.encode("ж", 64)


@pytest.mark.parametrize("texts", [["red"], ["red ball", "", "  "], ["a"], ["日本語"], ["1 2 3"]])
def test_any_non_empty_corpus_trains(texts):
  vocabulary = train_vocabulary(texts)
  assert 2 not in vocabulary.encode(texts[0], 64)


def test_max_vocab_size_limits_the_vocabulary():
  assert len(train_vocabulary(CAPTIONS, max_vocab_size=50)) == 50


def test_training_does_not_depend_on_order_or_process(vocabulary):
  program = (
    "import sys, hashlib; from walt_t5x.text.vocabulary import train_vocabulary as t;"
    "print(hashlib.sha256(t(sys.argv[1:]).model).hexdigest())"
  )
  shuffled = list(np.random.default_rng(0).permutation(CAPTIONS))
  output = subprocess.run(
    [sys.executable, "-c", program, *shuffled], capture_output=True, text=True, check=True
  )
  assert output.stdout.strip() == hashlib.sha256(vocabulary.model).hexdigest()


def test_errors(tmp_path):
  with pytest.raises(ValueError, match="no text"):
    train_vocabulary(["", " "])
  with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
    Vocabulary.load(tmp_path / "spiece.model")
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS), model_writer=model, model_type="char", minloglevel=2
  )
  with pytest.raises(ValueError, match=r"got \(pad, eos, unk\) = \(-1, 2, 0\)"):
    Vocabulary(model.getvalue())
