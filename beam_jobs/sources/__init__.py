"""Sources of rows: one file per kind of source; each yields the manifest lines of `rows`."""

from beam_jobs.sources.rows import PROBLEMS, Row, guess_modality, parse_line, resolve

__all__ = ["PROBLEMS", "Row", "guess_modality", "parse_line", "resolve"]
