"""Pipelines: what the call of a diffusers pipeline takes, and the pipelines that diffusers lacks."""
