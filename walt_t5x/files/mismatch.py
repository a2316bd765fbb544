"""The error of two things that were not made for each other."""


class ProvenanceMismatch(ValueError):
  """A cache, or a run's folder, that was made with another tokenizer, text encoder, schema or data set."""
