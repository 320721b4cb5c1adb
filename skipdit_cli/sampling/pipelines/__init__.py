"""The pipelines that diffusers does not have, or has for one model only."""
