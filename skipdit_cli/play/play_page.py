"""The page of ``skipdit play``, in Gradio Blocks: its widgets, and what they call."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.play.page_parts import CSS, error_html, numbers_html, pictures_html, plan_html, title_html
from skipdit_cli.play.player import Conditions, Player
from skipdit_cli.play.serve import stay_offline
from skipdit_cli.settings import LARGEST_SEED

FIRST_SPEEDUP, STEP = 3.0, 0.5
COLOURS = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_title_text_color": "*neutral_700",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
}
"""Colours of the theme whose contrast is below 4.5 otherwise."""
MODEL_QUEUE = "model"
"""The queue of all runs: the model makes one picture at a time."""


class Callbacks:
    """What the widgets of the page call: plain functions of their values."""

    def __init__(self, player: Player):
        self.player = player

    def conditions(self, condition, negative_prompt, seed, guidance_scale) -> Conditions:
        """Return the conditions that the widgets show.

        Raises:
            UsageError: A value is missing or out of range.
        """
        if seed is None or seed != int(seed) or not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"Got the seed {seed} but expected a whole number from 0 to {LARGEST_SEED}.")
        if self.player.model.is_guided and (guidance_scale is None or guidance_scale < 0):
            raise UsageError(f"Got the guidance scale {guidance_scale} but expected 1 (off) or more.")
        scale = float(guidance_scale) if self.player.model.is_guided else self.player.start.guidance_scale
        if not self.player.model.is_text_conditional:
            return Conditions(None if condition is None else int(condition), None, None, int(seed), scale)
        if not (condition or "").strip():
            raise UsageError("Got no prompt; write what the picture shows.")
        return Conditions(None, condition, negative_prompt or None, int(seed), scale)

    def preview(self, speedup, *values) -> tuple[str, str]:
        """Return the steps of a speedup, and the command that makes its picture."""
        choices = self.player.choices
        choice = choices.at(speedup)
        strip = plan_html(choice, len(choices.timesteps), None if choice.plan else choices.levels)
        try:
            flags = self.player.flags(self.conditions(*values), choice)
        except UsageError as cause:
            return strip, f"# {cause}"
        suffix = "mp4" if self.player.model.is_video else "png"
        return strip, shlex.join(["skipdit", "sample", *flags, "-o", f"play.{suffix}"])

    def sample(self, speedup, *values, advance: Callable[[int, int], None] = lambda done, total: None):
        """Return the pictures and the numbers of a speedup; None in place of the pictures, and a sentence, on error.

        Args:
            advance: Called after each denoising step with the steps that are done, and all of them.
        """
        try:
            conditions, choice = self.conditions(*values), self.player.choices.at(speedup)
            total, done = self.player.counted_steps(conditions, choice), 0

            def step() -> None:
                nonlocal done
                done += 1
                advance(done, total)

            comparison = self.player.compare(conditions, choice, step)
        except Exception as cause:
            return None, error_html(sentence_of(cause))
        return pictures_html(comparison), numbers_html(comparison)


def sentence_of(cause: Exception) -> str:
    """Return the sentence that the page shows for an exception."""
    if isinstance(cause, SkipditError):
        return str(cause)
    if hasattr(cause, "format_message"):  # Click's, for a value that no flag takes
        return f"{cause.format_message().rstrip('.')}."
    return f"{type(cause).__name__}: {first_line(cause)}."


def make_page(player: Player) -> Any:
    """Return the page of a player: Gradio Blocks, with ``launch_arguments`` for ``serve``."""
    stay_offline()
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(**COLOURS)
    with gr.Blocks(analytics_enabled=False, title=f"{player.model.name} | skipdit play") as page:
        _fill(gr, page, player)
    page.launch_arguments = {"theme": theme, "css": CSS, "ssr_mode": False, "footer_links": []}
    return page


def _fill(gr, page, player: Player) -> None:
    """Put the widgets on the page and connect them."""
    callbacks, model, start = Callbacks(player), player.model, player.start
    gr.HTML(title_html(model.name))
    speedup = gr.Slider(1, 10, FIRST_SPEEDUP, step=STEP, label="Speedup", info="At least so many times fewer FLOPs")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            condition = _condition(gr, player)
            negative = gr.Textbox(start.negative_prompt, label="Negative prompt", visible=model.is_text_conditional)
            with gr.Row():
                seed = gr.Number(start.seed, label="Seed", precision=0, minimum=0, min_width=90)
                scale = gr.Number(
                    start.guidance_scale, label="Guidance", step=0.5, minimum=0, min_width=90, visible=model.is_guided
                )
            automatic = gr.Checkbox(True, label="Sample when the slider moves")
            button = gr.Button("Sample", variant="primary")
        with gr.Column(scale=2, min_width=300, elem_id="stage"):
            strip = gr.HTML()
            pictures = gr.HTML(pictures_html(None), elem_id="pictures")
            numbers = gr.HTML(elem_id="numbers")
    command = gr.Textbox(
        label="This command makes the cached picture",
        lines=2,
        max_lines=6,
        interactive=False,
        elem_id="command",
        buttons=["copy"],
    )

    def run(progress, *values):
        pictures_now, said = callbacks.sample(
            *values, advance=lambda done, total: progress((done, total), desc="Denoising", unit="steps")
        )
        return gr.skip() if pictures_now is None else pictures_now, said

    def sample(*values, progress=gr.Progress()):  # Gradio finds it by its default
        return run(progress, *values)

    def sample_if(is_automatic, *values, progress=gr.Progress()):
        return run(progress, *values) if is_automatic else (gr.skip(), gr.skip())

    inputs, results = [speedup, condition, negative, seed, scale], [pictures, numbers]
    queue: dict[str, Any] = {
        "outputs": results,
        "concurrency_limit": 1,
        "concurrency_id": MODEL_QUEUE,
        "api_name": False,
        "show_progress_on": pictures,
    }
    changes = [each.change for each in inputs]
    gr.on(changes, callbacks.preview, inputs, [strip, command], queue=False, show_progress="hidden", api_name=False)
    moves = [speedup.change, *([] if model.is_text_conditional else [condition.change])]
    gr.on(moves, sample_if, [automatic, *inputs], trigger_mode="always_last", **queue)
    entered = [seed.submit, scale.submit, *([condition.submit, negative.submit] if model.is_text_conditional else [])]
    gr.on([button.click, *entered], sample, inputs, trigger_mode="multiple", **queue)
    page.load(callbacks.preview, inputs, [strip, command], queue=False, show_progress="hidden", api_name=False)
    if start.prompt != "":  # else there is nothing to sample yet
        page.load(sample, inputs, **queue)


def _condition(gr, player: Player) -> Any:
    """Return the widget of the prompt or the class label; an invisible one for an unconditional model."""
    model, start = player.model, player.start
    if model.is_text_conditional:
        return gr.Textbox(start.prompt, label="Prompt", placeholder="a cat on a roof", lines=2, max_lines=6)
    return gr.Dropdown(list(model.labels), value=start.label, label="Class label", visible=bool(model.labels))
