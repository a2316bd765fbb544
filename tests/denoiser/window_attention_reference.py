"""Window attention and its gradients in float64 numpy, one window and head at a time, on tokens in grid order."""

import itertools

import numpy as np

EPSILON = 1e-6


def _norm(x, scale):
  """LayerNorm without bias; returns (result, residuals for the gradient)."""
  if scale is None:
    return x, None
  centered = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + EPSILON)
  return centered / deviation * scale, (centered / deviation, deviation, scale)


def _norm_gradient(of_result, kept):
  if kept is None:
    return of_result, 0.0
  normal, deviation, scale = kept
  inner = of_result * scale
  d = normal.shape[-1]
  # Jacobian of the norm, row by row: (I - 1 1^T / d - n n^T / d) / deviation.
  jacobian = np.eye(d) - 1 / d - normal[:, :, None] * normal[:, None, :] / d
  return np.einsum("nij,nj->ni", jacobian / deviation[:, :, None], inner), (of_result * normal).sum(
    0
  )


def _one(q, k, v, scales, bias, visible, of_out):
  """Result and gradients of one window and head: q [M, d], k and v [M + L, d], bias [M, M + L], visible [M + L]."""
  qn, kept_q = _norm(q, scales[0])
  kn, kept_k = _norm(k, scales[1])
  root = np.sqrt(q.shape[-1])
  scores = np.where(visible, qn @ kn.T / root + bias, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = weights @ v
  of_weights = of_out @ v.T
  # (diag(p) - p p^T) g, row by row.
  of_scores = weights * of_weights - weights * np.einsum("mn,mn->m", weights, of_weights)[:, None]
  of_q, of_query_scale = _norm_gradient(of_scores @ kn / root, kept_q)
  of_k, of_key_scale = _norm_gradient(of_scores.T @ qn / root, kept_k)
  return out, of_q, of_k, weights.T @ of_out, of_scores, of_query_scale, of_key_scale


def window_attention(
  q, k, v, of_out, *, window, scales=(None, None), table=None, text=None, is_image=None
):
  """Returns the result and all gradients by name.

  Args:
    q, k, v, of_out: [B, t, h, w, K, d]; of_out is the cotangent of the result.
    window: (wt, wh, ww) in tokens.
    scales: [d] each, of the query-key norm.
    table: [(2 wt - 1)(2 wh - 1)(2 ww - 1), K] of the relative position bias.
    text: (keys [B, F, L, K, d], values, mask [B, F, L]); F is 1 or the number of windows along time.
    is_image: [B], examples that return their values.
  """
  q, k, v, of_out = (np.asarray(a, np.float64) for a in (q, k, v, of_out))
  batch, *grid, heads, d = q.shape
  wt, wh, ww = window
  found = {"out": np.zeros_like(v), "query": np.zeros_like(q), "key": np.zeros_like(k)}
  found |= {"value": np.zeros_like(v), "query_scale": np.zeros(d), "key_scale": np.zeros(d)}
  places = np.array(list(itertools.product(range(wt), range(wh), range(ww))))
  rows = np.zeros((len(places), len(places)), int)
  for i, a in enumerate(places):
    dt, dh, dw = (a - places).T
    rows[i] = ((dt + wt - 1) * (2 * wh - 1) + dh + wh - 1) * (2 * ww - 1) + dw + ww - 1
  if table is not None:
    table = np.asarray(table, np.float64)
    found["table"] = np.zeros_like(table)
  if text is not None:
    text = (np.asarray(text[0], np.float64), np.asarray(text[1], np.float64), np.asarray(text[2]))
    found |= {"text_key": np.zeros_like(text[0]), "text_value": np.zeros_like(text[1])}
  scales = [None if s is None else np.asarray(s, np.float64) for s in scales]
  starts = itertools.product(*(range(0, n, size) for n, size in zip(grid, window, strict=True)))
  for b, (t, h, w), head in itertools.product(range(batch), list(starts), range(heads)):
    at = (b, *(places + np.array([t, h, w])).T, head)
    if is_image is not None and is_image[b]:
      found["out"][at], found["value"][at] = v[at], of_out[at]
      continue
    keys, values, visible = k[at], v[at], np.ones(len(places), bool)
    bias = np.zeros((len(places), len(places)))
    if table is not None:
      bias = table[rows, head]
    if text is not None:
      f = t // wt if text[0].shape[1] > 1 else 0
      keys = np.concatenate([keys, text[0][b, f, :, head]])
      values = np.concatenate([values, text[1][b, f, :, head]])
      visible = np.concatenate([visible, text[2][b, f]])
      bias = np.pad(bias, ((0, 0), (0, text[0].shape[2])))
    out, of_q, of_k, of_v, of_scores, of_qs, of_ks = _one(
      q[at], keys, values, scales, bias, visible, of_out[at]
    )
    own = len(places)
    found["out"][at], found["query"][at] = out, of_q
    found["key"][at], found["value"][at] = of_k[:own], of_v[:own]
    found["query_scale"] += of_qs
    found["key_scale"] += of_ks
    if table is not None:
      np.add.at(found["table"], (rows, head), of_scores[:, :own])
    if text is not None:
      found["text_key"][b, f, :, head] += of_k[own:]
      found["text_value"][b, f, :, head] += of_v[own:]
  return found
