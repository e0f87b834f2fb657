"""The embedding space of a model in two dimensions, as a page and as a table."""
