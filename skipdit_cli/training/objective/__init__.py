"""Training objectives: from a micro-batch to its loss."""
