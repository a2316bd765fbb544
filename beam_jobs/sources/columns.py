"""Maps the columns of a table to the fields of a manifest row."""

import ast
import contextlib
import dataclasses
import decimal
import functools
import io
import json
import re
import string
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.sources.rows import load_json, row_key
from data.class_names import class_words

FIELDS = (
  "uri",
  "captions",
  "caption_weights",
  "label",
  "class",
  "start_seconds",
  "end_seconds",
  "crop",
  "split",
  "modality",
  "group",
)
_SYNSET = re.compile(r"(n\d{8})\s+(.+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """How a table's columns map to a row's fields; a field that is not mapped is the column of the same name.

  Args:
    fields: (field, column) pairs.
    captions: (column, weight) pairs; each column contains a caption or a list of captions.
    keep: columns to keep for filters and for the ledger.
    uri_template: format string over the columns, such as '{youtube_id}_{time_start:06d}_{time_end:06d}.mp4'.
    class_names: (key, words) of each class in the order of its labels; the 'class' field contains keys.
    caption_template: caption of rows that have a class but no caption; '{class}' is the class in words.
    split_names: (name in the table, our name) pairs.
    split: split of rows that do not name one.
    validation_percent: percentage of the rows without a split that a hash assigns to validation.
  """

  fields: tuple[tuple[str, str], ...] = ()
  captions: tuple[tuple[str, float], ...] = ()
  keep: tuple[str, ...] = ()
  uri_template: str = ""
  class_names: tuple[tuple[str, str], ...] = ()
  caption_template: str = "{class}"
  split_names: tuple[tuple[str, str], ...] = ()
  split: str = "train"
  validation_percent: float = 0.0

  @functools.cached_property
  def by_field(self) -> dict[str, str]:
    """The column of each field."""
    return {field: field for field in FIELDS} | dict(self.fields)

  @functools.cached_property
  def classes(self) -> dict[str, tuple[int, str]]:
    """Label and words by class key."""
    return {key: (label, words) for label, (key, words) in enumerate(self.class_names)}

  @property
  def stated(self) -> tuple[str, ...]:
    """Columns that must exist because a setting names them."""
    mapped = [column for _, column in self.fields] + [column for column, _ in self.captions]
    parts = string.Formatter().parse(self.uri_template)
    return tuple(dict.fromkeys(mapped + [name for _, name, _, _ in parts if name]))

  @property
  def used(self) -> tuple[str, ...]:
    """Every column that a row may use; the others need not be read."""
    return tuple(
      dict.fromkeys([*self.by_field.values(), "caption", "scores", *self.stated, *self.keep])
    )

  @property
  def changes_nothing(self) -> bool:
    """Whether manifest rows remain unchanged."""
    return self == Columns(keep=self.keep)


def to_row(raw: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
  """Fields of one manifest row from values by column.

  Numeric strings and decimals are converted if a number is expected; NaN is a missing value, as pandas writes it.
  Invalid values are kept, and become a problem when the row is parsed.
  """
  raw = {name: value for name, value in raw.items() if value == value}
  row: dict[str, Any] = {}
  for name in columns.keep:
    _put(row, name, raw.get(name))
  _put(row, "scores", raw.get("scores"))
  for name in ("uri", "modality", "group"):
    _put(row, name, raw.get(columns.by_field[name]))
  for name in ("start_seconds", "end_seconds", "label"):
    value = _number(raw.get(columns.by_field[name]))
    if name == "label" and isinstance(value, float) and value.is_integer():
      value = int(value)
    _put(row, name, value)
  _put(row, "crop", _numbers(raw.get(columns.by_field["crop"])))
  if columns.uri_template:
    try:
      row["uri"] = _Formatter().vformat(columns.uri_template, (), raw)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
      row["source_error"] = (
        f"uri: got {error!r} in {dict(raw)}, expected values for --uri_template={columns.uri_template}"
      )
  _put_captions(row, raw, columns)
  _put_class(row, raw.get(columns.by_field["class"]), columns)
  _put_split(row, raw.get(columns.by_field["split"]), columns)
  return row


def to_line(row: Mapping[str, Any]) -> str:
  """Manifest line of a row; equal rows give equal lines. Values that JSON does not have, such as times, become text."""
  return json.dumps(row, sort_keys=True, default=str)


def bad_row(uri: str, message: str) -> str:
  """Manifest line of a row that the source could not read; it becomes a dead letter."""
  return to_line({"uri": uri, "source_error": message})


def parse_class_names(text: str) -> tuple[tuple[str, str], ...]:
  """(key, words) of each line, in order.

  A line is a class name, or a tab-separated key and words, or, as in ImageNet, a synset and its synonyms, of which the
  first is used.

  Raises:
    ValueError: if a key is repeated.
  """
  names = []
  for line in filter(None, map(str.strip, text.splitlines())):
    key, tab, words = line.partition("\t")
    if not tab and (match := _SYNSET.fullmatch(line)):
      key, words = match[1], match[2].split(",")[0]
    names.append((key.strip(), words.strip() or class_words(key)))
  twice = [key for key, count in sorted(Counter(key for key, _ in names).items()) if count > 1]
  if twice:
    raise ValueError(f"class names: {twice[:3]} are repeated, expected one class per line")
  return tuple(names)


def _put(row: dict[str, Any], name: str, value: Any) -> None:
  if value is not None and value != "":
    row[name] = value


def _number(value: Any) -> Any:
  """The number in a string or a decimal, else the value unchanged."""
  try:
    return float(value) if isinstance(value, str | decimal.Decimal) else value
  except ValueError:
    return value


def _numbers(value: Any) -> Any:
  """The list of numbers in a text or a list, in JSON or as pandas and NumPy write them, else the value unchanged."""
  items = value
  if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
    items = value[1:-1].replace(",", " ").split()
  return [_number(item) for item in items] if isinstance(items, list) else value


def _put_captions(row: dict[str, Any], raw: Mapping[str, Any], columns: Columns) -> None:
  if columns.captions:
    found = [(text, weight) for name, weight in columns.captions for text in _texts(raw.get(name))]
    row["captions"] = [text for text, _ in found]
    row["caption_weights"] = [weight for _, weight in found]
    return
  for name in (columns.by_field["captions"], "caption"):
    if found := _texts(raw.get(name)):
      row["captions"] = found
      value = raw.get(columns.by_field["caption_weights"])
      _put(row, "caption_weights", _list_in(value) if isinstance(value, str) else value)
      return


def _texts(value: Any) -> list[Any]:
  if value is None or value == "":
    return []
  if isinstance(value, str):
    value = _list_in(value)
  return value if isinstance(value, list) else [value]


def _list_in(text: str) -> Any:
  """The list if a text is one in JSON, or in Python, as pandas writes lists and arrays; else the text."""
  if text.startswith("["):
    with contextlib.suppress(ValueError):
      return load_json(text)
    with contextlib.suppress(ValueError, SyntaxError, tokenize.TokenError):
      tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
      kinds = [(token.type, token.string) for token in tokens if token.string.strip()]
      texts = [string for kind, string in kinds if kind == tokenize.STRING]
      others = {string for kind, string in kinds if kind != tokenize.STRING}
      # An array has no commas between its elements.
      single = text.count("[") - sum(string.count("[") for string in texts) == 1
      if texts and single and kinds[-1][1] == "]" and others <= {"[", "]", ",", "nan", "None"}:
        return [ast.literal_eval(string) for string in texts]
  return text


def _put_class(row: dict[str, Any], key: Any, columns: Columns) -> None:
  if key is None or key == "" or not columns.class_names:
    return
  if not isinstance(key, str) or key not in columns.classes:
    row["source_error"] = (
      f"class: got {key!r}, expected one of {len(columns.classes)} names (--class_names)"
    )
    return
  row["label"], words = columns.classes[key]
  if not row.get("captions"):
    row["captions"] = [columns.caption_template.replace("{class}", words)]


def _put_split(row: dict[str, Any], split: Any, columns: Columns) -> None:
  if isinstance(split, str):
    split = dict(columns.split_names).get(split, split)
  if split is None or split == "":
    split = columns.split
    if columns.validation_percent:
      key = row_key(row.get("uri"), row.get("start_seconds"), row.get("end_seconds"))
      if int(key[16:24], 16) / 16**8 < columns.validation_percent / 100:
        split = "validation"
  row["split"] = split


class _Formatter(string.Formatter):
  """Formats numeric strings with number formats; gives no access to attributes or items."""

  def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs[field_name], field_name

  def format_field(self, value: Any, format_spec: str) -> str:
    if format_spec.endswith("d") and not isinstance(value, int):
      value = int(float(value))
    return super().format_field(value, format_spec)
