"""The embedded data set: scenes, and the pictures, captions, questions and sounds that are made of them."""
