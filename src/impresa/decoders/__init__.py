"""Language models that read a prefix of embeddings before their text: `qwen` (pretrained) and `trm` (from scratch)."""
