"""Training data: which samples a folder holds, what comes with each, and how they are read."""
