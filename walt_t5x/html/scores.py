"""Scores written by `python -m walt_t5x.evaluate`, as rows of one table."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
  """One score and what makes it comparable.

  Attributes:
    protocol: its name, `@` and the start of its hash.
    name: name of the score, such as FVD.
    value: formatted value, with the standard deviation over folds.
    counts: number of samples and references.
    network: name and fingerprint of the feature network, and whether its weights are the public ones.
    samples: the folder that was scored.
  """

  protocol: str
  name: str
  value: str
  counts: str
  network: str
  samples: str


def _network(entry: Mapping[str, Any]) -> str:
  if not entry.get("network"):
    return ""
  public: dict[bool | None, str] = {True: "public weights", False: "NOT the public weights"}
  known = entry.get("network_description") or public.get(
    entry.get("public_weights"), "weights not recorded"
  )
  return f"{entry['network']} {str(entry.get('network_fingerprint', ''))[:12]} ({known})"


def _protocol(result: Mapping[str, Any]) -> str:
  """Name and hash of the protocol; files from earlier versions may have no hash."""
  return f"{result['protocol']}@{result.get('protocol_hash', 'no hash recorded')}"


def _feature_scores(result: Mapping[str, Any]) -> list[ScoreRow]:
  rows = []
  for name, entry in result["scores"].items():
    spread = f" ± {entry['std']:.4g}" if entry.get("values", 1) > 1 else ""
    rows.append(
      ScoreRow(
        protocol=_protocol(result),
        name=name,
        value=f"{entry['score']:.4g}{spread}",
        counts=f"{entry['samples']:,} samples, {entry['references']:,} references",
        network=_network(entry),
        samples=str(result.get("samples", "")),
      )
    )
  return rows


def _prompt_scores(result: Mapping[str, Any], folder: str) -> list[ScoreRow]:
  rows, protocol = [], _protocol(result)
  for stage, values in result["scores"].items():
    short = {name.rpartition("/")[2]: value for name, value in values.items()}
    for kind in ("colour", "direction"):
      if f"{kind}_accuracy" in short:
        right, total = short[f"{kind}_right"], short[f"{kind}_total"]
        rows.append(
          ScoreRow(
            protocol=protocol,
            name=f"{stage}: {kind}",
            value=f"{short[f'{kind}_accuracy']:.0%} ({right:.0f} of {total:.0f})",
            counts=f"{short.get('clips', total):.0f} samples",
            network="",
            samples=folder,
          )
        )
    if "similarity" in short:
      rows.append(
        ScoreRow(
          protocol=protocol,
          name=f"{stage}: similarity",
          value=f"{short['similarity']:.4f}",
          counts=f"{short['clips']:.0f} samples",
          network=f"CLIP {result['network_fingerprint'][:12]}",
          samples=folder,
        )
      )
  return rows


def read_scores(file: Path) -> list[ScoreRow]:
  """The rows of one scores file.

  Raises:
    ValueError: `evaluate` did not write the file.
  """
  try:
    result = json.loads(file.read_text(encoding="utf-8"))
    if all("score" in entry for entry in result["scores"].values()):
      return _feature_scores(result)
    return _prompt_scores(result, str(file.parent))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} has no scores: {error!r}; expected a file that `python -m walt_t5x.evaluate` wrote."
    ) from error
