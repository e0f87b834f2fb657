"""A language model behind the encoders."""
