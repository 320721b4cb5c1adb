"""A picture of a run's denoising steps: one cell per step, full or reused."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 600, 26
"""Units of the SVG, which is drawn as wide as the page allows."""


def draw_steps(full: Sequence[bool], positions: Sequence[float] | None = None) -> str:
    """Return an SVG with one cell per step, in the order of sampling: filled if the step is full, hollow if reused.

    The colours are those of the CSS classes ``full`` and ``reused``.

    Args:
        full: One bool per step.
        positions: A rising number per step, such as its noise level; steps are then ticks at these places.
    """
    count = sum(full)
    title = f"{count} of {len(full)} steps are full: " + ", ".join(str(at) for at, each in enumerate(full) if each)
    cells = _ticks(full, positions) if positions is not None else _cells(full)
    return (
        f'<svg class="steps" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{title}"><title>{title}</title>{"".join(cells)}</svg>'
    )


def _cells(full: Sequence[bool]) -> list[str]:
    pitch = WIDTH / len(full)
    gap = min(2.0, pitch / 4)
    return [_rectangle(step * pitch, pitch - gap, is_full) for step, is_full in enumerate(full)]


def _ticks(full: Sequence[bool], positions: Sequence[float]) -> list[str]:
    first, last = positions[0], positions[-1]
    length = last - first or 1.0
    width = min(5.0, WIDTH / len(full) / 2)
    places = [(WIDTH - width) * (position - first) / length for position in positions]
    drawn = sorted(zip(full, places))  # reused steps first, so that full ones are drawn over them
    return [_rectangle(place, width, is_full) for is_full, place in drawn]


def _rectangle(x: float, width: float, is_full: bool) -> str:
    kind = "full" if is_full else "reused"
    top, height = (0, HEIGHT) if is_full else (HEIGHT * 0.3, HEIGHT * 0.4)
    return f'<rect class="{kind}" x="{x:.1f}" y="{top:g}" width="{width:.1f}" height="{height:g}" rx="1"/>'
