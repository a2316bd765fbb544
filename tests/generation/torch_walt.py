"""The networks of an exported cascade in plain torch, from the equations: float32, no windows by cells, no kernels.

Reads only the exported files, with `safetensors` and `json`. Arrays are channels last, as in the package.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def load(part: Path) -> tuple[dict[str, torch.Tensor], dict]:
  """(weights by name, float32; settings) of an exported part."""
  (file,) = part.glob("checkpoint_*/weights.safetensors")
  weights = {name: tensor.float() for name, tensor in load_file(file).items()}
  return weights, json.loads((part / "model.json").read_text())["model"]


def _linear(w, name, x, axes=1):
  kernel = w[f"{name}/kernel"]
  inputs = math.prod(kernel.shape[:axes])
  y = x.flatten(x.ndim - axes) @ kernel.reshape(inputs, -1)
  return y + w[f"{name}/bias"].flatten() if f"{name}/bias" in w else y


def _norm(x, eps=1e-6):
  return F.layer_norm(x, x.shape[-1:], eps=eps)


def _sinusoid(steps, features=256):
  half = features // 2
  angles = steps[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
  return torch.cat([angles.cos(), angles.sin()], -1)


def _mlp(w, name, x):
  return _linear(w, f"{name}/out", F.silu(_linear(w, f"{name}/in", x)))


def _patches(x, p):
  b, t, h, w, c = x.shape
  x = x.reshape(b, t, h // p, p, w // p, p, c).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h // p, w // p, p * p * c)


def _unpatched(x, p):
  b, t, h, w, depth = x.shape
  x = x.reshape(b, t, h, w, p, p, depth // p**2).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * p, w * p, -1)


def _attention(w, name, x, window, heads, *, text=None, mask=None):
  """Softmax attention of each window over its tokens, and over the text if there is one."""
  b, t, rows, columns, width = x.shape
  wt, wh, ww = window
  grid = (b, t // wt, wt, rows // wh, wh, columns // ww, ww, width)
  windows = x.reshape(grid).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, wt * wh * ww, width)

  def projected(what, tokens):
    return _linear(w, f"{name}/{what}", tokens).unflatten(-1, (heads, -1))

  query, key, value = (projected(what, windows) for what in ("query", "key", "value"))
  if text is not None:
    every = (b, windows.shape[1], *text.shape[1:])
    texts = text[:, None].expand(every)
    key, value = (
      torch.cat([own, projected(what, texts)], 2) for own, what in ((key, "key"), (value, "value"))
    )
  query = _norm(query) * w[f"{name}/query_norm/scale"]
  key = _norm(key) * w[f"{name}/key_norm/scale"]
  scores = torch.einsum("bnqhd,bnkhd->bnhqk", query, key) / math.sqrt(query.shape[-1])
  if text is None:
    places = torch.cartesian_prod(*(torch.arange(n) for n in window)).reshape(-1, 3)
    offset = places[:, None] - places[None] + torch.tensor([wt - 1, wh - 1, ww - 1])
    row = (offset[..., 0] * (2 * wh - 1) + offset[..., 1]) * (2 * ww - 1) + offset[..., 2]
    scores = scores + w[f"{name}/relative_position_bias/table"][row].permute(2, 0, 1)
  else:
    own = torch.ones(b, windows.shape[2], dtype=torch.bool)
    visible = torch.cat([own, mask], 1)[:, None, None, None]
    scores = scores.masked_fill(~visible, -math.inf)
  out = torch.einsum("bnhqk,bnkhd->bnqhd", scores.softmax(-1), value)
  out = _linear(w, f"{name}/out", out, axes=2)
  out = out.reshape(b, t // wt, rows // wh, columns // ww, wt, wh, ww, width)
  return out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)


def denoise(
  w, model, z, steps, *, self_condition, text, text_mask, frames=None, frame_mask=None, low=None, low_steps=None
):  # fmt: skip
  """Output of the denoiser for noised latents [B, t, h, w, c] with one caption [B, L, E] each."""
  m = model["module"]
  parts = [z, self_condition]
  if frames is not None:
    mask = frame_mask[:, :, None, None, None]
    parts += [mask * frames, mask.expand(*z.shape[:-1], 1)]
  if low is not None:
    kernel = w["low_resolution_upsample/kernel"].permute(3, 2, 0, 1)
    frames = F.conv2d(low.flatten(0, 1).movedim(-1, 1), kernel, padding=1).movedim(1, -1)
    frames = frames.unflatten(0, low.shape[:2]) + w["low_resolution_upsample/bias"]
    parts.append(_unpatched(frames, m["low_resolution_scale"]))
  x = _linear(w, "patch_embedding/projection", _patches(torch.cat(parts, -1), m["patch_size"]))
  space = w["position_embedding/space/embedding"].reshape(x.shape[2:])
  x = x + space + w["position_embedding/time/embedding"][:, None, None]
  condition = _mlp(w, "time_mlp", _sinusoid(steps))
  if m["pooled_text"]:
    count = text_mask.sum(1, keepdim=True)
    condition = condition + _mlp(w, "pooled_text_mlp", (text * text_mask[..., None]).sum(1) / count)
  if low is not None:
    condition = condition + _mlp(w, "low_resolution_mlp", _sinusoid(low_steps))
  active, text = F.silu(condition), _linear(w, "text_projection", text)
  for layer in range(m["num_layers"]):
    kind = ("spatial", "spatiotemporal")[layer % 2]
    name = f"pairs_{layer // 2}/{kind}"
    lora = _linear(w, f"{name}/adaln_lora/up", _linear(w, f"{name}/adaln_lora/down", active))
    flat = _linear(w, "adaln/projection", active) + lora
    scale1, scale2, shift1, shift2, gate1, gate2 = flat[:, None, None, None].chunk(6, -1)
    modulated = _norm(x) * (1 + scale1) + shift1
    window, heads = m[f"{kind}_window"], m["num_heads"]
    x = x + gate1 * _attention(w, f"{name}/attention", modulated, window, heads)
    window = m["spatial_window"]
    given = {"text": text, "mask": text_mask}
    x = x + _attention(w, f"{name}/cross_attention", _norm(x), window, heads, **given)
    modulated = _norm(x) * (1 + scale2) + shift2
    hidden = F.gelu(_linear(w, f"{name}/mlp/wi", modulated), approximate="tanh")
    x = x + gate2 * _linear(w, f"{name}/mlp/wo", hidden)
  shift, scale = _linear(w, "final_adaln", active)[:, None, None, None].chunk(2, -1)
  return _unpatched(_linear(w, "output", _norm(x) * (1 + scale) + shift), m["patch_size"])


def _conv(w, name, x, strides=(1, 1, 1)):
  """Causal in time, where the first frame is repeated in front; zeros around each frame."""
  kernel = w[f"{name}/kernel"]
  kt, kh, _ = kernel.shape[:3]
  x = torch.cat([x[:, :1]] * (kt - 1) + [x], 1).movedim(-1, 1)
  total = max(kh - strides[1], 0)
  x = F.pad(x, (total // 2, total - total // 2) * 2)
  y = F.conv3d(x, kernel.permute(4, 3, 0, 1, 2), stride=strides).movedim(1, -1)
  return y + w[f"{name}/bias"] if f"{name}/bias" in w else y


def _normalized(x):
  """Group normalization of each frame."""
  channels = x.shape[-1]
  most = max(1, min(32, channels // 4))
  groups = max(g for g in range(1, most + 1) if channels % g == 0)
  frames = F.group_norm(x.flatten(0, 1).movedim(-1, 1), groups, eps=1e-6).movedim(1, -1)
  return frames.unflatten(0, x.shape[:2])


def _group_norm(w, name, x):
  return _normalized(x) * w[f"{name}/scale"] + w[f"{name}/bias"]


def _blocks(w, model, name, x):
  for number in range(model["num_res_blocks"]):
    block = f"{name}_block_{number}"
    y = _conv(w, f"{block}/conv_0", F.silu(_group_norm(w, f"{block}/norm_0", x)))
    y = _conv(w, f"{block}/conv_1", F.silu(_group_norm(w, f"{block}/norm_1", y)))
    x = y + (_conv(w, f"{block}/shortcut", x) if f"{block}/shortcut/kernel" in w else x)
  return x


def encode(w, model, video):
  """Latents [B, t, h, w, c] of pixels in [0, 1] [B, T, H, W, 3]."""
  x = _conv(w, "vae/encoder/stem", 2 * video - 1)
  for level in range(len(model["channel_multipliers"])):
    x = _blocks(w, model, f"vae/encoder/level_{level}", x)
    if level < len(model["temporal_downsample"]):
      strides = (1 + model["temporal_downsample"][level], 2, 2)
      x = _conv(w, f"vae/encoder/level_{level}_down", x, strides)
  x = _blocks(w, model, "vae/encoder/bottom", x)
  return _conv(w, "vae/encoder/head", F.silu(_group_norm(w, "vae/encoder/head_norm", x)))


def decode(w, model, latents):
  """Pixels [B, T, H, W, 3], not clipped, of latents [B, t, h, w, c]."""
  x = _blocks(w, model, "vae/decoder/bottom", _conv(w, "vae/decoder/stem", latents))
  mean = latents.mean((2, 3), keepdim=True)
  std = (latents.var((2, 3), keepdim=True, correction=0) + 1e-6).sqrt()
  for level in reversed(range(len(model["channel_multipliers"]))):
    name = f"vae/decoder/level_{level}"
    scale, shift = (
      v @ w[f"{name}_adaptive_norm/{what}_kernel"] + w[f"{name}_adaptive_norm/{what}_bias"]
      for v, what in ((std, "scale"), (mean, "shift"))
    )
    # Of the latent frame that a frame is decoded from.
    each = (x.shape[1] - 1) // max(latents.shape[1] - 1, 1)
    source = [0] + [1 + frame // each for frame in range(x.shape[1] - 1)]
    x = _normalized(x) * scale[:, source] + shift[:, source]
    x = _blocks(w, model, name, x)
    if level:
      t = 1 + model["temporal_downsample"][level - 1]
      x = _conv(w, f"{name}_up", x)
      b, frames, rows, columns, depth = x.shape
      x = x.reshape(b, frames, rows, columns, t, 2, 2, depth // (4 * t))
      x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, frames * t, rows * 2, columns * 2, -1)
      x = x[:, t - 1 :]
  x = _conv(w, "vae/decoder/head", F.silu(_group_norm(w, "vae/decoder/head_norm", x)))
  return (x + 1) / 2
