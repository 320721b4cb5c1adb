"""Latents and texts, encoded once and kept in shards: what ``--cache-latents`` names."""
