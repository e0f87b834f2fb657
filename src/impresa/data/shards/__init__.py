"""Tar shards: their members, an index of each for random access, and a cache of those that lie elsewhere."""
