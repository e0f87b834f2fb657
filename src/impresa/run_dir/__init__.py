"""The run directory: saved, claimed and loaded."""
