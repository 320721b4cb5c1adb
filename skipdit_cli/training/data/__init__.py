"""Training data: the samples of a folder, their labels or captions, and how they are read, encoded and kept."""
