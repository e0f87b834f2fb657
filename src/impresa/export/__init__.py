"""Folders for other libraries, one module for each format; `formats.py` says which run fits which, without torch."""

from impresa.export.run import export_run

__all__ = ["export_run"]
