"""The error of two things that were not made for each other."""


class Mismatch(ValueError):
  """A cache, checkpoint or folder that was made with other encoders, settings, data or another model than is wanted.

  The message names what differs, both values, and what to set.
  """
