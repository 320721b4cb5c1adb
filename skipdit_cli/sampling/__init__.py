"""Sampling: from class labels or prompts and seeds to pixels."""
