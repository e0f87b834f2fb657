"""Sources, samples, transforms, tokenizers, the loader."""
