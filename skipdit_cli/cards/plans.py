"""The plans in the folder of a model: which files they are, and their table in its card."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli.cards.card import CARD, put_section
from skipdit_cli.errors import UsageError
from skipdit_cli.formats import markdown_table
from skipdit_cli.planning.plan import Plan, load_plan

PLANS = "plans"
"""The folder of the plans in a model folder, and the name of the marked part of the card."""


def plans_in(folder: Path) -> dict[Path, Plan]:
    """Return the plans that a model folder carries, by their files; what is no plan is left out."""
    plans = {}
    for file in sorted((folder / PLANS).glob("*.yaml")):
        try:
            plans[file] = load_plan(file)
        except UsageError:
            continue
    return plans


def plan_files(folder: Path) -> list[Path]:
    """Return the files of the plans that a model folder carries, with those of their output branches."""
    plans = plans_in(folder)
    branches = (plan.sampler.arguments.get("output_branch") for plan in plans.values())
    return [*plans, *(folder / PLANS / Path(str(branch)).name for branch in branches if branch is not None)]


def put_plans(folder: Path) -> bool:
    """List the plans of a model folder in its card.

    Returns:
        Whether the folder has a card to list them in.
    """
    card = folder / CARD
    if not card.is_file():
        return False
    put_section(card, PLANS, "Plans", plan_table(folder))
    return True


def plan_table(folder: Path) -> str:
    """Return the table of the plans of a model folder, in markdown; a sentence if it has none."""
    rows = []
    for file, plan in plans_in(folder).items():
        made_for = plan.made_for
        accuracy = made_for["measured"].get("psnr_exact")
        rows.append([f"`{PLANS}/{file.name}`", plan.candidate.describe(), f"{made_for['cost']:g}", accuracy or ""])
    if not rows:
        return "None."
    return "\n".join(
        [
            "Use one with `skipdit sample -m FOLDER --plan FOLDER/plans/NAME.yaml`. Cost counts full forwards.",
            "",
            markdown_table(["plan", "how", "cost", "dB to exact, held out"], rows),
        ]
    )
