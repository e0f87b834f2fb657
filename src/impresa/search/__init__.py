"""Embedding whole data into a file, and finding the nearest of many embeddings."""
