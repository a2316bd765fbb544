#!/usr/bin/env bash
# Builds the wheel and tests it without the clone: a new environment from the lock, another folder, the installed
# commands. It makes a clip with a preset, at most 60 s after the installation, and trains gin/tiny/base.gin for ten
# steps on a cache that the wheel made. Two minutes on 2 cores; everything is in a temporary folder that is deleted.
#
#   bash scripts/check_wheel.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
clone=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3
unset PYTHONPATH

step() { echo "== $*"; }
# Shows the end of a command's output if it fails.
quiet() { "$@" > "$folder/log" 2>&1 || { status=$?; tail -n 30 "$folder/log"; echo "check_wheel: failed: $*" >&2; exit "$status"; }; }

step "an empty environment from the lock"
VENV="$folder/venv" bash scripts/setup.sh
PATH="$folder/venv/bin:$PATH"

step "the wheel"
# From a copy: pip leaves build/ and *.egg-info next to setup.py.
mkdir "$folder/source"
cp -r setup.py pyproject.toml README.md LICENSE gin walt_t5x data beam_jobs "$folder/source"
quiet python -m pip wheel --no-deps --wheel-dir="$folder/dist" "$folder/source"
quiet python -m pip install --no-deps "$folder"/dist/*.whl
rm -r "$folder/source"
ls -sh "$folder/dist"

mkdir "$folder/elsewhere"
cd "$folder/elsewhere"
python - "$clone" <<'END'
import sys
import walt_t5x
assert not walt_t5x.__file__.startswith(sys.argv[1]), walt_t5x.__file__
print(f"walt_t5x {walt_t5x.__version__} of {walt_t5x.__file__}")
END

# A clip with a preset, in an empty folder.
clip_of() {
  step "walt-generate --preset=$1"
  mkdir "$folder/clip"
  local begun=$SECONDS
  local TIMEFORMAT='%R s, %U s of processor time'
  time (cd "$folder/clip" && quiet walt-generate --preset="$1" --prompt="a red square moves right")
  local took=$((SECONDS - begun))
  ls "$folder/clip/samples/00000_"*.mp4
  [ "$took" -le 60 ] || { echo "check_wheel: the clip took $took s, expected at most 60" >&2; exit 1; }
}
# First, before anything else has been compiled. Without presets in the package, the check makes one below.
preset=$(python - <<'END'
from pathlib import Path
import walt_t5x
print(*[file.parent.name for file in Path(walt_t5x.__file__).parent.glob("presets/*/preset.json")][:1])
END
)
[ -z "$preset" ] || clip_of "$preset"

step "walt-plan --gin_file=gin/walt_3b.gin"
walt-plan --gin_file=gin/walt_3b.gin 2> "$folder/log" | tee plan.txt | grep -E "^(total|tokens|rows|training)"
grep -q "^total .*2,940,118,024" plan.txt

clip=(--resolutions=32x32,64x64 --num_frames=9 --fps=8 --num_shards=2)
step "a corpus, a text encoder, pixels"
quiet python -m data.samples --output=corpus --no_real --num_clips=48 --num_stills=16
quiet python -m walt_t5x.text.init_encoder --captions=corpus/manifest.jsonl --output=text --size=tiny
walt-preprocess --manifest=corpus/manifest.jsonl --output=cache --task=shapes_pixels --content=pixels "${clip[@]}" 2> "$folder/log" | tail -n 1

train() { quiet walt-train --gin_file="$1" --gin.MODEL_DIR="\"$2\"" --gin.TRAIN_STEPS=10 --gin.STATS_PERIOD=5 \
  --gin.SAVE_PERIOD=10 --gin.EVAL_PERIOD=10 --gin.schedules.warmup_cosine.warmup_steps=2 --seqio_additional_cache_dirs=cache; }
step "walt-train --gin_file=gin/tiny/vae.gin, ten steps"
train gin/tiny/vae.gin vae
step "latents and text"
walt-preprocess --manifest=corpus/manifest.jsonl --output=cache --task=shapes \
  --vae_checkpoint=vae --text_encoder=text --max_text_length=16 "${clip[@]}" 2> "$folder/log" | tail -n 1
step "walt-train --gin_file=gin/tiny/base.gin, ten steps"
train gin/tiny/base.gin base
grep -o '"step": [0-9]*\|"loss": [0-9.]*' base/metrics.jsonl | paste -sd ' '
[ -d base/checkpoint_10 ]

step "walt-generate, walt-evaluate"
quiet walt-generate --run=base --prompt="a red square moves right"
walt-evaluate --protocol=caption_accuracy --samples=samples 2> "$folder/log" | tail -n 1
step "python -m walt_t5x.export"
python -m walt_t5x.export --run=base --output=tiny --license=CC0-1.0 --trained_by=check_wheel.sh 2> "$folder/log"
[ -n "$preset" ] || clip_of "$PWD/tiny"
echo "check_wheel: the wheel works, in $SECONDS s"
