"""Looking inside a model: attention drawn on the picture, and an answer traced back to it."""
