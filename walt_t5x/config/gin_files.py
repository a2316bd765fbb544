"""Location of the gin files: the folder that contains `gin/`, in a clone and in an installed package.

In a clone it is the root. setup.py copies the files into the wheel as `walt_t5x/_gin/gin/`, because a folder `gin/` in
site-packages belongs to gin-config.
"""

import os
from collections.abc import Sequence

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSTALLED = os.path.join(_PACKAGE, "_gin")
FOLDER = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.dirname(_PACKAGE)


def find(name: str, *, flag: str) -> str:
  """The path of a gin file: `name` itself if it exists, else the package's file of that name.

  Args:
    name: name such as `gin/models/vae_tiny.gin`.
    flag: the flag that set it, for the message.

  Raises:
    FileNotFoundError: neither exists.
  """
  for path in (name, os.path.join(FOLDER, name)):
    if os.path.isfile(path):
      return path
  raise FileNotFoundError(f"{flag}: {not_found(name, [FOLDER])}")


def not_found(name: str, folders: Sequence[str]) -> str:
  """The message for a gin file that is neither in one of the folders nor in the current one."""
  looked = dict.fromkeys(os.path.abspath(os.path.join(folder, name)) for folder in ("", *folders))
  return (
    f"no file at {', nor at '.join(looked)}; expected a path that exists, or one of the package's own gin files, "
    "such as gin/tiny/base.gin"
  )
