"""The forward pass of the fused window attention: one step of the kernel's grid."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from walt_t5x.denoiser.window_attention_head import Head, dot, each_head
from walt_t5x.denoiser.window_attention_shape import Shape


def body(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
  """Args:

  shape: static sizes of the call.
  groups: number of groups of heads in the step's blocks.
  images: prefetched [B]; nonzero for examples that return their values.
  given, written: input and output blocks by name.
  """
  image = images[pl.program_id(1)] != 0
  out = written["out"]

  @pl.when(image)
  def _pass_through():
    out[...] = given["value"][...]

  @pl.when(jnp.logical_not(image))
  def _attend():
    for group, number in each_head(shape, groups):
      head = Head(shape, given, group, number)
      products = [
        dot(w.astype(v.dtype), v, (1, 0)) for w, v in zip(head.weights, head.values, strict=True)
      ]
      head.write(out, sum(products) * head.inverse)
