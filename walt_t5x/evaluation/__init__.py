"""Scoring folders of samples by a protocol: which clips, their features, the numbers."""
