"""Measurement: the speed, cost and quality of every way to sample one model."""
