"""A conversion from its source to its proof, in the order of its steps.

1. ``source.py`` finds out what the model is: a pipeline, a transformer, an official file.
2. ``plan.py`` decides what it becomes: merge, time embedding, dtype, skip branches. Nothing is written yet.
3. ``write.py`` fills a folder beside the output.
4. ``proof.py`` compares that folder with the source: weights, and the outputs of a forward pass.

The folder takes the output's place only if every step ends well.
"""

from __future__ import annotations

import torch

from skipdit_cli.cards.card import Origin, write_card
from skipdit_cli.conversion.conversion_plan import Conversion, plan_conversion
from skipdit_cli.conversion.convert_settings import ConvertSettings
from skipdit_cli.conversion.proof import Proof, prove
from skipdit_cli.conversion.source import open_source
from skipdit_cli.conversion.text_parts import find_text_parts
from skipdit_cli.conversion.write import check_copied_parts, write_model
from skipdit_cli.files import CONVERT, replace_folder
from skipdit_cli.models.vae import load_vae
from skipdit_cli.sampling.device import DTYPES


def plan_from_settings(model, settings: ConvertSettings) -> Conversion:
    """Open a model and decide what the settings make of it.

    Args:
        model: A pipeline folder or hub id, a transformer folder, or an official file.
    Raises:
        UsageError: The model cannot be converted, or a setting contradicts it.
        NotFiniteError: It holds NaN or infinity, or would in the dtype that is written.
    """
    hub_arguments = vars(settings.hub)
    source = open_source(model, settings.official_file, **hub_arguments)
    hub_arguments = {**hub_arguments, "variant": None}  # that of the model alone
    vae, text, text_from = None, None, settings.text_from
    if settings.vae is not None:
        vae = load_vae(settings.vae, source.config["in_channels"], **hub_arguments)
    if text_from is not None:
        text = find_text_parts(text_from, source.config, with_vae=vae is None, **hub_arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # replace branches begin with random weights
        return plan_conversion(source, settings.merge, settings.time_embedding, DTYPES.get(settings.dtype), vae, text)


def convert(plan: Conversion, settings: ConvertSettings, origin: Origin) -> Proof:
    """Write the converted folder with its card, and prove, from what is on disk, that nothing else changed.

    Args:
        origin: What the card says about where the model comes from.
    Raises:
        UsageError: The output cannot be written there, or the source is damaged.
        NotFiniteError: A part of the source holds NaN or infinity.
        SkipditError: Writing failed, or the proof did; nothing is kept.
    """
    source = plan.source
    settings.check_output({"model": source.place})
    source.build()  # raises where weights and config do not fit, before anything is written
    if settings.verify:
        check_copied_parts(plan)
    with replace_folder(settings.output, CONVERT, settings.overwrite, plan.needed_bytes()) as folder:
        write_model(plan, folder)
        proof = prove(plan, folder) if settings.verify else Proof()
        write_card(folder, origin, {"source": f"{origin.source}, {source.layout}", "conversion": proof})
    return proof
