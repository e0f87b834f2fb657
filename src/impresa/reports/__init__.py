"""Tables for terminal, page and card; page templates."""
