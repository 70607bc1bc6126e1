"""Outputs of results: text formats, files, timelines and overlays."""
