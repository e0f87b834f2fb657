"""Metrics: tensors in, dataclasses out."""
