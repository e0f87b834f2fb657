"""Encoders that share one embedding space."""
