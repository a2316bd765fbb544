"""A job's flags in a file are those of the command line."""

import pytest

from beam_jobs.runners import job_flags

FLAGS = [
  "--manifest=rows.csv",
  "--output=cache",
  "--task=shapes",
  "--content=pixels",
  "--resolutions=32x32,64x64",
  "--num_frames=9",
  "--column=uri=file",
  "--column=caption=text:2",
  "--deinterlace",
  "--qa_samples=0",
]
TOML = """
manifest = "rows.csv"  # A comment.
output = "cache"
task = "shapes"
content = "pixels"
resolutions = "32x32,64x64"
num_frames = 9
column = ["uri=file", "caption=text:2"]
deinterlace = true
allow_upscale = false
qa_samples = 0
"""


@pytest.fixture
def file(tmp_path):
  def write(text):
    path = tmp_path / "data.toml"
    path.write_text(text)
    return f"--config={path}"

  return write


def _parsed(*argv):
  return job_flags.parse(list(argv), description=None)


def test_a_file_gives_the_flags_of_the_command_line(file):
  args, rest = _parsed(file(TOML), "--direct_num_workers=2")
  expected, _ = _parsed(*FLAGS)
  assert vars(args) == vars(expected) | {"config": args.config}
  assert rest == ["--direct_num_workers=2"]


def test_the_command_line_overrides_the_file_wherever_it_names_it(file):
  for argv in (["--num_frames=17", file(TOML)], [file(TOML), "--num_frames=17"]):
    assert _parsed(*argv)[0].num_frames == 17


def test_a_list_of_two_values_is_one_flag(file):
  text = TOML.replace("qa_samples = 0", "qa_samples = 1\nqa_mean = [-1, 2.5]")
  with pytest.raises(SystemExit):  # A cache of pixels has none; it was read.
    _parsed(file(text))
  text = text.replace('content = "pixels"', 'vae_checkpoint = "v"\nno_text = true')
  assert _parsed(file(text))[0].qa_mean == [-1, 2.5]


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("num_frame = 9", "num_frame, which is not a flag; did you mean num_frames"),
    ("num_frames = ", "data.toml is not TOML"),
  ],
)
def test_a_mistake_in_the_file_is_named(text, named, file):
  with pytest.raises(ValueError, match=named):
    _parsed(file(text))
  with pytest.raises(FileNotFoundError, match="--config: no file at"):
    _parsed("--config=none.toml")
