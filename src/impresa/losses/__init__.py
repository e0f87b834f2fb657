"""Contrastive losses, Matryoshka, gathering over processes."""
