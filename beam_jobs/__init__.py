"""Beam jobs: preprocessing, verification, replays and evaluation."""

import logging

# Beam warns on import where the extra `gcp` is not installed; jobs that need it say so themselves.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
