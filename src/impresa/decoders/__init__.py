"""Language models that read a prefix of embeddings before their text: pretrained ones, and `trm` (from scratch)."""
