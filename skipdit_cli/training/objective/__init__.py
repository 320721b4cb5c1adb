"""The training objective: from a micro-batch to its loss."""
