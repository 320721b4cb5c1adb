"""The colours of a report, in light and in dark mode."""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14171c"),
    "panel": ("#f4f6f8", "#1d2229"),
    "text": ("#1b1f24", "#e8eaed"),
    "muted": ("#55606b", "#a8b0ba"),
    "line": ("#d3d9df", "#363d47"),
    "edge": ("#7a8590", "#7d8793"),
    "accent": ("#0a62a6", "#74b9ff"),
    "on-accent": ("#ffffff", "#10151b"),
    "warning": ("#8a4b00", "#f0b35e"),
    "series-0": ("#0a62a6", "#6cb6ff"),
    "series-1": ("#c0334a", "#ff8fa0"),
    "series-2": ("#23794a", "#6fd19b"),
    "series-3": ("#7d4e91", "#cfa3e6"),
    "series-4": ("#9c5a05", "#f0b35e"),
    "series-5": ("#0e7276", "#5fd0d3"),
    "series-6": ("#a8438f", "#f09bd8"),
    "series-7": ("#6f5f49", "#cdb898"),
    "level-0": ("#eef3f8", "#1b2531"),
    "level-1": ("#cddff0", "#24405f"),
    "level-2": ("#a3c5e4", "#2c5f90"),
    "level-3": ("#6fa3d0", "#417fb9"),
    "level-4": ("#3d7db5", "#6ea6da"),
    "level-5": ("#1d5a92", "#a3c9ee"),
    "level-6": ("#0b3560", "#e3effb"),
}
"""Name to the colour in light and in dark mode. The levels of a heat map grow in contrast to the page."""
NUM_SERIES = sum(name.startswith("series-") for name in COLOURS)
