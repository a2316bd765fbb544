"""Scores folders of samples by a protocol: selection of clips, their features, the scores."""
