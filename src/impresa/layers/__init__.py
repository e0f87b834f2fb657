"""Layers that encoders, decoders and fusion share."""
