"""Images, texts and sounds to tokens and embeddings."""
