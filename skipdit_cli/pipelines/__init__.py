"""Sampling: from labels and seeds to pictures."""
