"""Names of classes as words, for prompts and captions."""

import re


def class_words(name: str) -> str:
  """Returns a class name in words: 'ApplyEyeMakeup' and 'apply_eye_makeup' are 'apply eye makeup'.

  A name with spaces stays as it is.
  """
  if " " in name:
    return name
  spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
  return " ".join(spaced.replace("_", " ").split()).lower()
