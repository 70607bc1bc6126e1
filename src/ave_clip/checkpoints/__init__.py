"""Conversion, export, upload and model cards of checkpoints."""
