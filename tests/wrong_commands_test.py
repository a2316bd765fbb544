"""Wrong commands are answered in at most six lines that name the cure, and the cure works.

Where the cure is a flag, it is applied as the message prints it: `_cured`. Elsewhere the table has it.
"""

import re
import shlex

import pytest

from tests import commands

LINES = 6
BASE = ("walt_t5x.train", "--gin_file=gin/tiny/base.gin", '--gin.MODEL_DIR="/nowhere/run"')
CASCADE = ("VAE_CHECKPOINT", "TEXT_ENCODER", "BASE_CHECKPOINT", "SR1_CHECKPOINT")
SAMPLES = (
  "walt_t5x.generate",
  "--gin_file=gin/tiny/generate.gin",
  *(f'--gin.{name}="/nowhere"' for name in CASCADE),
  "--output=/nowhere/samples",
  "--prompt=a",
)
EXPORT = ("walt_t5x.export", *SAMPLES[1:-1], "--license=CC0-1.0", "--trained_by=train.sh")
PLAN = ("walt_t5x.plan", "--gin_file=gin/walt_3b.gin")
PIXELS = (
  "beam_jobs.preprocess",
  "--manifest=MANIFEST",
  "--output=/nowhere/cache",
  "--task=toy",
  "--content=pixels",
  "--resolutions=32x32",
)
LATENTS = tuple(flag for flag in PIXELS if not flag.startswith("--content"))
SCORES = ("walt_t5x.evaluate", "--protocol=fvd", "--samples=s", "--reference=r")
# (command, what the message contains, the flags that cure it if the message does not print them)
TABLE = [
  # Bindings.
  ([*BASE[:2], "--gin.MODEL_DIR=/nowhere/run"], r"write --gin.MODEL_DIR=\"/nowhere/run\"", None),
  ([*BASE[:2], "--gin.MODEL_DIR=a run"], "write '--gin.MODEL_DIR=\"a run\"'", None),
  ([*BASE[:2], "--gin.MODEL_DIR=gs://bucket/run"], r"write --gin.MODEL_DIR=\"gs://", None),
  ([*BASE[:2], "--gin.MODEL_DIR", "/nowhere"], r"write --gin.MODEL_DIR=\"/nowhere\"", None),
  ([*BASE, "--gin.TRAIN_STEPS", "60"], "write --gin.TRAIN_STEPS=60", None),
  ([*BASE, "TRAIN_STEPS=60"], "write --gin.TRAIN_STEPS=60", None),
  ([*BASE, "--gin.TRAIN_STEP=60"], "Did you mean --gin.TRAIN_STEPS?", None),
  ([*BASE, "--gin.train_steps=60"], "Did you mean --gin.TRAIN_STEPS?", None),
  ([*BASE, '--gin.TRAIN_STEPS="60"'], "write --gin.TRAIN_STEPS=60", None),
  ([*BASE, "--gin.TRAIN_STEPS=many"], "write --gin.TRAIN_STEPS=7600", None),
  ([*BASE, "--gin.BATCH_SIZE=[8"], "write --gin.BATCH_SIZE=8", None),
  ([*BASE, "--gin.RANDOM_SEED=none"], "write --gin.RANDOM_SEED=None", None),
  ([*BASE, "--gin.USE_HARDWARE_RNG=true"], "write --gin.USE_HARDWARE_RNG=True", None),
  ([*BASE, "--gin.train/engine.DatasetConfig.batch_size=x"], "batch_size=8", None),
  ([*BASE, "--gin.trainn/engine.DatasetConfig.batch_size=8"], "mean --gin.train/engine", None),
  ([*BASE, '--gin.DATASET="toy"'], "DATASET is now MIXTURE_OR_TASK_NAME", []),
  ([*BASE, "--gin.A-B=1"], "expected a name such as TRAIN_STEPS", []),
  (BASE[:2], r"add --gin.MODEL_DIR=\"PATH\"", None),
  (["walt_t5x.train", "--gin_file=gin/vae_ucf101.gin"], "PERCEPTUAL_WEIGHTS", None),
  (["walt_t5x.train", "--gin_file=gin/tiny/base_scores.gin"], "SCORE_REFERENCE", None),
  ([s for s in SAMPLES if "--gin." not in s], r"SR1_CHECKPOINT=\"PATH\"", None),
  # Gin files.
  (["walt_t5x.train", BASE[2]], "for example --gin_file=gin/tiny/base.gin", None),
  (["walt_t5x.train", "--gin_file=gin/tiny/bse.gin", BASE[2]], "mean gin/tiny/base.gin?", None),
  (["walt_t5x.train", "--gin_file=tiny/base.gin", BASE[2]], "mean gin/tiny/base.gin?", None),
  (["walt_t5x.plan", "--gin_file=walt_3b.gin"], "mean gin/walt_3b.gin?", None),
  (["walt_t5x.train", "--gin_file=gin/tiny/generate.gin"], "walt_t5x.generate` runs it", BASE[1:]),
  (["walt_t5x.train", "--gin_file=gin/tiny/eval_base.gin"], "T5X's eval.py runs it", BASE[1:]),
  (["walt_t5x.train", "--gin_file=gin/models/vae_tiny.gin"], "a file that includes it", BASE[1:]),
  (["walt_t5x.plan", "--gin_file=gin/tiny/generate.gin"], "plan_sampling` prints", PLAN[1:]),
  (["walt_t5x.generate", BASE[1], "--output=o"], "walt_t5x.train` runs it", SAMPLES[1:]),
  # Flags of absl's programs.
  ([*BASE, "--seqio_additional_cache_dir=c"], "mean --seqio_additional_cache_dirs?", None),
  ([*BASE, "--multiproces"], "did you mean --multiprocess?", None),
  ([*BASE, "--initialization_timeout=long"], "such as --initialization_timeout=300", None),
  ([*SAMPLES, "--num_samples=two"], "such as --num_samples=1", None),
  ([*SAMPLES, "--num_samples=0"], "0 is not a positive integer", SAMPLES[1:]),
  ([*SAMPLES, "--fps=0"], "0.0 is not number >= 0.1", SAMPLES[1:]),
  ([*SAMPLES, "--seed=-1"], "range [0, 2147483647]", SAMPLES[1:]),
  ([*SAMPLES, "--stage=base"], "did you mean --stages?", None),
  ([*SAMPLES, "--shard=3"], "such as 3/8", None),
  ([*SAMPLES, "--shard=3/2"], "0 <= NUMBER < COUNT", None),
  ([*SAMPLES, "--rounds=2"], "--rounds is now --extensions", [*SAMPLES[1:], "--extensions=1"]),
  ([*SAMPLES, "--preset=p"], "remove one of them", SAMPLES[1:]),
  ([*SAMPLES, "red", "square"], "values with spaces need quotes", SAMPLES[1:]),
  ([s for s in SAMPLES if "--output" not in s], "for example --output=samples", None),
  ([*SAMPLES, "--prompts_file=/nowhere.txt"], "--prompts_file=/nowhere.txt cannot", SAMPLES[1:]),
  (["walt_t5x.plan"], "for example --gin_file=gin/walt_3b.gin", None),
  ([*PLAN, "--batch_size=x"], "--batch_size=x: expected numbers from 1", PLAN[1:]),
  ([*PLAN, "--batch_size=1,2"], "expected one number without --search", PLAN[1:]),
  ([*PLAN, "--topology=v5p"], "e.g. v5p:4x4x4", []),  # Needs the extra [tpu].
  ([*PLAN, "--topology=v9:2x2"], "e.g. v5p:4x4x4", []),
  (["walt_t5x.export", *SAMPLES[1:-2]], "for example --output=preset --license", None),
  ([*EXPORT, "--dtype=float16"], "should be one of <bfloat16|float32>", EXPORT[1:]),
  # Flags of argparse's programs, and Beam's.
  ([*PIXELS, "--resolutions=32"], "like 32x32,64x64", None),
  ([*PIXELS, "--num_frame=9"], "did you mean --num_frames?", None),
  ([*PIXELS, "--num_frames=nine"], "such as --num_frames=17", None),
  ([*PIXELS, "--content=pixel"], "did you mean --content=pixels?", None),
  ([*PIXELS, "--duplicates=exactt"], "did you mean --duplicates=exact?", None),
  ([*PIXELS, "--source=josnl"], "did you mean --source=jsonl?", None),
  ([*PIXELS, "--vae_gin_file=x"], "no effect with --content=pixels: remove it", PIXELS[1:]),
  ([*PIXELS, "--clips_per_video=2"], "needs --clip_position=random", None),
  ([*PIXELS, "--filter=aesthetic>>5"], "like 'aesthetic>=5'", PIXELS[1:]),
  ([*PIXELS, "--runner=FnApiRuner"], "did you mean --runner=FnApiRunner?", None),
  ([*PIXELS, "--direct_num_worker=2"], "did you mean --direct_num_workers?", None),
  ([*PIXELS, "--direct_num_workers=two"], "--direct_num_workers: invalid int", PIXELS[1:]),
  (LATENTS, "--vae_checkpoint is needed for --content=latents", PIXELS[1:]),
  ([*SCORES, "--protocol=fdv"], "did you mean --protocol=fvd?", None),
  ([*SCORES, "--size=32"], "such as 128x128", None),
  ([*SCORES, "--geometry=crp"], "did you mean --geometry=crop?", None),
  ([*SCORES, "--captions_apart=f"], "needs --protocol=caption_accuracy", None),
  (["walt_t5x.evaluate", *SCORES[2:]], "arguments are required: --protocol", SCORES[1:]),
  (["data.samples", "--output=o", "--num_clips=many"], "such as --num_clips=640", None),
  (["data.samples", "--outptu=o"], "did you mean --output?", None),
]


def _cured(command, message):
  """The command with the cure that the message prints."""
  module, *given = command
  last = given[-1] if given else ""
  name = last.partition("=")[0]
  if found := re.search(r"write (.+)", message):
    (flag,) = shlex.split(found[1])
    start = next((n for n, arg in enumerate(given) if arg.partition("=")[0] in flag), None)
    assert start is not None, message
    return [module, *given[:start], flag]
  if found := re.search(r"did you mean (--\w+=\S+)\?", message):
    return [module, *given[:-1], found[1]]
  if found := re.search(r"(--[\w./]+) is unknown: did you mean (--\w+)\?", message):
    return [module, *[re.sub(rf"^{found[1]}(?=$|=)", found[2], arg) for arg in given]]
  if found := re.search(r"Did you mean (--gin\.\S+)\?", message):
    return [module, *given[:-1], f"{found[1]}={last.partition('=')[2]}"]
  if found := re.search(r"did you mean (\S+\.gin)\?", message):
    return [module, f"--gin_file={found[1]}", *given[1:]]
  if found := re.search(r"(?:for example|add) (--.*?)(?:\.( |$)|$)", message, re.MULTILINE):
    return [module, *given, *(flag.replace("VALUE", "1") for flag in shlex.split(found[1]))]
  if found := re.search(r"such as (--\w+=\S+)", message):
    return [module, *given[:-1], found[1]]
  if found := re.search(r"(?:such as|like|e\.g\.) ([\w/:,]+)", message):
    return [module, *given[:-1], f"{name}={found[1]}"]
  if found := re.search(r"remove (--\w+)", message):
    return [module, *[arg for arg in given if not arg.startswith(found[1])]]
  found = re.search(r"needs (--\w+=\w+)", message)
  assert found, f"no cure in {message}"
  return [module, *given, found[1]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
  """(exit code, message) of every command of the table."""
  manifest = tmp_path_factory.mktemp("manifest") / "rows.jsonl"
  manifest.write_text('{"uri": "a.mp4", "caption": "a"}\n')

  def placed(command):
    return [arg.replace("MANIFEST", str(manifest)) for arg in command]

  with commands.started() as results:
    told = results([placed(command) for command, _, _ in TABLE])
    cures = [
      _cured(command, message) if cure is None and code else [command[0], *(cure or command[1:])]
      for (command, _, cure), (code, message) in zip(TABLE, told, strict=True)
    ]
    again = results([placed(command) for command in cures])
  return list(zip(TABLE, told, cures, again, strict=True))


def test_a_wrong_command_is_answered_in_a_few_lines(answers):
  assert len(TABLE) >= 60
  for (command, expected, _), (code, message), _, _ in answers:
    assert code == 2, (command, code, message)
    assert expected in message, (command, message)
    assert len(message.splitlines()) <= LINES and "Traceback" not in message, (command, message)


def test_the_cure_that_is_printed_works(answers):
  for (command, _, cure), (_, message), cured, (code, then) in answers:
    if cure == []:
      continue
    assert code == 0, (command, message, cured, then)
