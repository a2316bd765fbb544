"""Where rows come from: one file a kind of source, all of them ending in the manifest lines of `rows`."""

from beam_jobs.sources.rows import PROBLEMS, Row, guess_modality, parse_line, resolve

__all__ = ["PROBLEMS", "Row", "guess_modality", "parse_line", "resolve"]
