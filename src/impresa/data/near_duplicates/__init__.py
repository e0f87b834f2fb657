"""Equal and near-equal images: by the digest of their pixels, and by small versions where a perceptual hash is near."""
