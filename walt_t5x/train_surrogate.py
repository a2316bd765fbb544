"""Trains the surrogate feature network `shapes` on rendered shapes, for machines without I3D's weights.

  python -m walt_t5x.train_surrogate --output=shapes.safetensors

Renders clips of one colored shape that moves or stands still, half of them at 32 x 32 and half at 64 x 64, and trains
a classifier of color, shape and direction. Prints the accuracies on held-out clips and the fingerprint of the weights,
which is reported with every score. The same seed gives the same fingerprint on the same kind of machine.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import cast

from walt_t5x.config import programs

DEFAULT_STEPS = 120
_CLIPS, _HELD_OUT = 1440, 216
_FRAMES = 9


def draw(seed: int, count: int, *, num_frames: int = _FRAMES):
  """Renders clips and their labels.

  Returns:
    (uint8 [count, num_frames, 64, 64, 3], int32 [count, 3]: index of color, shape and direction, with 4 for "still").
  """
  import jax
  import numpy as np

  from data.samples import shapes
  from walt_t5x.metrics.network_input import resize_bilinear
  from walt_t5x.metrics.shapes_network import SIZE

  # The network resizes small clips in the same way; doing it here avoids repeating it.
  enlarge = jax.jit(lambda video: resize_bilinear(video, (SIZE, SIZE)))
  rng = np.random.default_rng(seed)
  colors, directions = list(shapes.COLORS), list(shapes.DIRECTIONS)
  videos = np.empty((count, num_frames, SIZE, SIZE, 3), np.uint8)
  labels = np.empty((count, 3), np.int32)
  vocabulary = shapes.balanced_vocabulary(rng, count, moving=True)
  for index, (color, shape, direction) in enumerate(vocabulary):
    # A fifth of the clips stands still, independently of the color.
    direction = None if rng.random() < 0.2 else direction
    scene = shapes.sample_scene(rng, color=color, shape=shape, direction=direction)
    size = (SIZE // 2, SIZE)[int(rng.integers(2))]
    video = shapes.render(scene, num_frames=num_frames, size=size)
    if size != SIZE:
      video = np.rint(enlarge(video.astype(np.float32)))
    videos[index] = video
    labels[index] = (
      colors.index(color),
      shapes.SHAPES.index(shape),
      directions.index(direction) if direction else len(directions),
    )
  return videos, labels


def train(*, seed: int, steps: int, batch_size: int, learning_rate: float, clips: int = _CLIPS):
  """Returns (variables, accuracy on held-out clips by head, in [0, 1])."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from walt_t5x.metrics.shapes_network import HEADS, ShapesNetwork, preprocess

  videos, labels = draw(seed, clips)
  network = ShapesNetwork()
  variables = network.init(jax.random.key(seed), jnp.zeros((1, *videos.shape[1:])))
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  def loss(variables, x, y):
    logits = cast(dict[str, jax.Array], network.apply(variables, preprocess(x)))
    losses = (
      optax.softmax_cross_entropy_with_integer_labels(logits[head], y[:, i]).mean()
      for i, head in enumerate(HEADS)
    )
    return sum(losses)

  @jax.jit
  def step(variables, state, x, y):
    value, gradient = jax.value_and_grad(loss)(variables, x, y)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(variables, updates), state, value

  state, order = optimizer.init(variables), np.random.default_rng(seed)
  for number in range(1, steps + 1):
    chosen = order.choice(len(videos), size=batch_size, replace=False)
    variables, state, value = step(variables, state, videos[chosen], labels[chosen])
    if number % 20 == 0 or number == steps:
      print(f"step {number}, loss {float(value):.3f}", file=sys.stderr, flush=True)

  held, answers = draw(seed + 1, min(clips, _HELD_OUT))
  logits = jax.jit(lambda x: network.apply(variables, preprocess(x)))(held)
  right = {h: float((logits[h].argmax(-1) == answers[:, i]).mean()) for i, h in enumerate(HEADS)}
  return variables, right


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program."""
  parser = programs.parser("walt_t5x.train_surrogate", __doc__)
  parser.add_argument("--output", required=True, help="the .safetensors file to write")
  numbers = {"seed": 0, "steps": DEFAULT_STEPS, "batch_size": 32, "learning_rate": 3e-3}
  for name, default in numbers.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
  args = parser.parse_args(argv)
  if args.steps < 1 or not 1 <= args.batch_size <= _CLIPS:
    parser.error(
      f"expected --steps of at least 1 and --batch_size from 1 to {_CLIPS}, got "
      f"{args.steps} and {args.batch_size}"
    )

  import numpy as np
  from flax import traverse_util

  from walt_t5x.metrics import networks

  started = time.monotonic()
  variables, right = train(**{name: getattr(args, name) for name in numbers})
  flat = traverse_util.flatten_dict(variables, sep="/")
  flat = {name: np.asarray(tensor) for name, tensor in flat.items()}
  digest = networks.save_weights(args.output, flat)
  print(f"accuracy     {', '.join(f'{head} {share:.0%}' for head, share in right.items())}")
  print(f"parameters   {sum(tensor.size for tensor in flat.values()):,}")
  print(f"fingerprint  {digest}")
  print(f"written      {args.output}")
  result = {
    "network": "shapes",
    "file": args.output,
    "fingerprint": digest,
    "steps": args.steps,
    "seed": args.seed,
    "accuracy": right,
    "seconds": round(time.monotonic() - started, 1),
  }
  print(json.dumps(result))
  return 0


if __name__ == "__main__":
  sys.exit(main())
