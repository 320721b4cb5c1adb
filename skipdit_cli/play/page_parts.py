"""The parts of the page as HTML: the two pictures, the steps, the numbers, and an error."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from skipdit_cli.play.choices import Choice
from skipdit_cli.play.player import Comparison, Sample
from skipdit_cli.play.step_strip import draw_steps

MEDIA_TYPES = {".png": "image/png", ".mp4": "video/mp4"}
SMALLEST_SMOOTH = 64
"""Pixels of height below which a picture is enlarged without smoothing."""

CSS = """
.play h1 { font-size: 1.5rem; font-weight: 600; margin: 8px 0 0; overflow-wrap: anywhere; }
.play h1 + .note { margin-top: 2px; }
.play figure { margin: 0; min-width: 0; }
.play .pair { display: grid; grid-template-columns: 1fr 1fr; gap: clamp(8px, 2vw, 24px); align-items: end; }
.play figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; padding-bottom: 6px; }
.play .pair { max-width: 760px; }
.play figcaption b { font-weight: 600; }
.play img, .play video, .play .empty {
  display: block; margin: 0; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
}
.play .tiny { image-rendering: pixelated; }
.play a { color: var(--link-text-color); }
.play .numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; margin: 16px 0 0; }
.play .numbers div { border-top: 2px solid var(--border-color-primary); padding-top: 6px; }
.play .numbers dt, .play .note, .play figcaption span { color: var(--body-text-color-subdued); font-size: 0.875rem; }
.play .numbers dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.play .numbers small { display: block; font-size: 0.8125rem; color: var(--body-text-color-subdued); }
.play .note { margin: 12px 0 0; max-width: 75ch; }
.play .error { margin: 0; padding: 12px; border-left: 4px solid #dc2626; }
.play svg.steps { display: block; width: 100%; height: 26px; }
.play svg .full { fill: var(--play-full); }
.play svg .reused { fill: var(--play-reused); }
.play .legend { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px; margin: 0 0 6px; }
.play .ends { display: flex; justify-content: space-between; margin: 2px 0 8px; }
.play .ends span { color: var(--body-text-color-subdued); font-size: 0.8125rem; }
:root { --play-full: #0f766e; --play-reused: #b6c2cc; }
.dark { --play-full: #2dd4bf; --play-reused: #4b5a6a; }
.play .legend .note { margin: 0; }
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
#command textarea { font-family: var(--font-mono); font-size: 0.875rem; line-height: 1.5; }
footer { display: none !important; }
@media (max-width: 700px) {
  #stage { order: -1; }
  .play .numbers { grid-template-columns: 1fr 1fr; }
  .play .numbers div:last-child { grid-column: 1 / -1; }
}
"""


def title_html(name: str) -> str:
    """Return the head of the page."""
    return (
        f'<div class="play"><h1>{html.escape(name)}</h1>'
        '<p class="note">The same noise, sampled in full and with a cache.</p></div>'
    )


def plan_html(choice: Choice, uncached_steps: int, levels: Sequence[float] | None = None) -> str:
    """Return what a choice does: its name, its cost, and its steps.

    Args:
        uncached_steps: Denoising steps of the uncached run.
        levels: log(alpha / sigma) at each step, for a second strip by noise level; None where they are not known.
    """
    count, steps = sum(choice.full), len(choice.full)
    speedup = uncached_steps / choice.cost
    said = f"{_number(choice.cost)} full forwards in place of {uncached_steps}: {speedup:.1f} times fewer FLOPs"
    if not choice.flags:
        said = f"{uncached_steps} full forwards"
    parts = [
        f'<p class="legend"><b>{html.escape(choice.name)}</b><span class="note">{said}</span></p>',
        draw_steps(choice.full),
        f'<p class="ends"><span>step 0, noise</span><span>{count} of {steps} steps are full</span>'
        f"<span>step {steps - 1}</span></p>",
    ]
    if levels is not None and len(levels) == steps and count < steps:
        parts += [
            draw_steps(choice.full, levels),
            '<p class="ends"><span>most noise</span><span>the same steps by noise level, log(alpha/sigma)</span>'
            "<span>least noise</span></p>",
        ]
    return f'<div class="play">{"".join(parts)}</div>'


def pictures_html(comparison: Comparison | None) -> str:
    """Return the uncached picture beside the cached one; empty frames where there is nothing yet."""
    if comparison is None:
        figures = [_figure("Uncached", "", None), _figure("Cached", "", None)]
    else:
        uncached, cached = comparison.uncached, comparison.cached
        figures = [
            _figure("Uncached", _seconds(uncached), uncached),
            _figure(_capitalised(comparison.choice.name), _seconds(cached), cached),
        ]
    return f'<div class="play pair-box"><div class="pair">{"".join(figures)}</div></div>'


def numbers_html(comparison: Comparison) -> str:
    """Return what the comparison measured, and what its numbers do not say."""
    first, second = comparison.uncached.generated, comparison.cached.generated
    quality, is_same = comparison.quality, comparison.cached is comparison.uncached
    if quality.identical or quality.psnr is None:
        distance = ("identical", "bit for bit")
    else:
        distance = (f"{quality.psnr:.1f} dB", "PSNR to the uncached picture; more is closer")
    ratio = first.denoise_seconds / max(second.denoise_seconds, 1e-9)
    times = f"{first.denoise_seconds:.2f} s uncached, {second.denoise_seconds:.2f} s cached"
    measured = ("1 run", "of the uncached picture alone") if is_same else (f"{ratio:.1f} times", times)
    items = [
        ("Distance", *distance),
        ("FLOPs saved", f"{comparison.speedup:.1f} times", "counted: full forwards of both runs"),
        ("Time saved", *measured),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{what}</small></dd></div>" for name, value, what in items)
    earlier = ", the uncached one made earlier" if comparison.was_kept else ""
    rule = f"Seconds are those of one run of each{earlier}, the denoising steps alone; 'skipdit bench' times rounds."
    notes = [] if is_same else [rule]
    notes += _accuracy_notes(comparison)
    notes += [_capitalised(comparison.cached.warning)] if comparison.cached.warning else []
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return f'<div class="play"><dl class="numbers">{cells}</dl>{said}</div>'


def error_html(sentence: str) -> str:
    """Return an error as one sentence."""
    return f'<div class="play"><p class="error" role="alert">{html.escape(sentence)}</p></div>'


def _accuracy_notes(comparison: Comparison) -> list[str]:
    """Return what a plan was measured at: the picture nearest to the uncached one need not be the most accurate."""
    if comparison.choice.plan is None:
        return []
    measured = comparison.choice.plan.made_for["measured"]
    accuracy, full = measured.get("psnr_exact"), measured.get("full")
    if not isinstance(accuracy, (int, float)):
        return []
    note = f"'calibrate' measured this plan at {accuracy:.1f} dB from the exact solution"
    if isinstance(full, dict) and isinstance(full.get("psnr_exact"), (int, float)):
        note += f", and the full run ({full.get('what')}) at {full['psnr_exact']:.1f} dB"
    return [f"{note}. Where the two pictures differ, the uncached one is not always the right one."]


def _figure(title: str, detail: str, sample: Sample | None) -> str:
    caption = f"<figcaption><b>{html.escape(title)}</b><span>{detail}</span></figcaption>"
    return f"<figure>{caption}{_media(title, sample)}</figure>"


def _media(title: str, sample: Sample | None) -> str:
    if sample is None:
        return '<div class="empty"></div>'
    source = f"data:{MEDIA_TYPES[sample.suffix]};base64,{base64.b64encode(sample.content).decode()}"
    if sample.suffix == ".mp4":
        return f'<video src="{source}" aria-label="{html.escape(title)}" autoplay loop muted controls></video>'
    images = sample.generated.images
    tiny = images is not None and images.shape[1] < SMALLEST_SMOOTH
    return f'<img src="{source}" alt="{html.escape(title)} picture"{" class=tiny" * tiny}>'


def _seconds(sample: Sample) -> str:
    return f"{sample.generated.denoise_seconds:.2f} s"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
