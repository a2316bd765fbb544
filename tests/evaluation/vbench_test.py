"""VBench's folder: names that its reader looks for, samples of each prompt, messages for what is missing."""

import json

import numpy as np
import pytest

from walt_t5x.evaluation import vbench
from walt_t5x.generation.sample_folder import SampleFolder

INFO = [
  {"prompt_en": "a red car", "dimension": ["color"]},
  {"prompt_en": "a dog, Van Gogh style ", "dimension": ["appearance_style", "overall_consistency"]},
  {"prompt_en": "a red car", "dimension": ["object_class"]},
]


@pytest.fixture
def info(tmp_path):
  file = tmp_path / "info.json"
  file.write_text(json.dumps(INFO))
  return f"--full_info={file}"


def _generate(folder, prompts, count, formats=("mp4",)):
  samples = SampleFolder(folder)
  for index in range(count * len(prompts)):
    level = np.full((5, 16, 16, 3), index / 20, np.float32)
    samples.write(
      index, prompt=prompts[index // count], videos={"base": level, "sr1": level}, fps=8, seed=0,
      steps={"base": 1, "sr1": 1}, fingerprints={}, formats=formats,
    )  # fmt: skip


def _read_as_vbench(folder, info):
  """The files of VBench's standard mode, by its rule for names: prompt, dash, 0 to 4, and the first file's suffix."""
  names = sorted(path.name for path in folder.iterdir())
  suffix = names[0][names[0].rindex(".") :]
  wanted = [f"{row['prompt_en']}-{index}{suffix}" for row in info for index in range(5)]
  assert set(wanted) == set(names)
  return [(folder / name).read_bytes() for name in dict.fromkeys(wanted)]


def test_samples_of_the_written_prompts_get_the_names_that_vbench_reads(info, tmp_path):
  vbench.main([info, f"--prompts={tmp_path / 'prompts.txt'}"])
  prompts = (tmp_path / "prompts.txt").read_text().splitlines()
  assert prompts == ["a red car", "a dog, Van Gogh style"]
  _generate(tmp_path / "samples", prompts, 5)
  flags = [info, f"--samples={tmp_path / 'samples'}", f"--output={tmp_path / 'vbench'}"]
  vbench.main(flags)
  given = [path.read_bytes() for path in sorted((tmp_path / "samples").glob("*_sr1.mp4"))]
  assert len(set(given)) == 10 and _read_as_vbench(tmp_path / "vbench", INFO) == given
  vbench.main([*flags[:2], f"--output={tmp_path / 'colors'}", "--dimension=color", "--stage=base"])
  base = [path.read_bytes() for path in sorted((tmp_path / "samples").glob("*_base.mp4"))]
  assert _read_as_vbench(tmp_path / "colors", INFO[:1]) == base[:5]


@pytest.mark.parametrize(
  ("count", "formats", "flags", "message"),
  [
    (4, ("mp4",), [], r"2 of 2 prompts have fewer than 5 samples, for example 4 of 'a red car'.*--num_samples=5"),
    (5, ("png",), [], r"expected one of \.mp4, \.gif; generate with --formats=mp4"),
    (5, ("mp4",), ["--stage=sr2"], r"--stage: got sr2, expected one of base, sr1"),
    (5, ("mp4",), ["--dimension=hue"], r"--dimension: got hue, expected some of appearance_style, color"),
  ],
)  # fmt: skip
def test_what_vbench_would_miss_is_named(count, formats, flags, message, info, tmp_path):
  _generate(tmp_path / "samples", ["a red car", "a dog, Van Gogh style"], count, formats)
  output = tmp_path / "vbench"
  with pytest.raises(SystemExit, match=message):
    vbench.main([info, f"--samples={tmp_path / 'samples'}", f"--output={output}", *flags])
  assert not output.exists()
