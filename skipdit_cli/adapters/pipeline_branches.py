"""Loading skip branches onto a pipeline from a folder or the hub, and unloading them, as a LoRA is."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipdit_cli.adapters.pipeline_cache import check_plan, disable_skip_cache, plan_in_use, split_model, use_plan
from skipdit_cli.cards.plans import PLANS
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.pipeline_parts import SECOND, unwrap_compiled
from skipdit_cli.models.hub import find_branches
from skipdit_cli.models.open import read_branches
from skipdit_cli.planning.plan import Plan, load_plan
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches, remove_skip_branches, skip_folder
from skipdit_cli.skip.attach import check_branches
from skipdit_cli.skip.base_weights import check_base
from skipdit_cli.trunk import known_trunk

logger = logging.getLogger(__name__)
LOADED = "_skipdit_branches"
"""The attribute of a pipeline or transformer that holds its ``LoadedBranches``."""
FORMER = "_skipdit_former"
"""The attribute of loaded branches that holds, as a tuple of one, those of the transformer before any were loaded; two
pipelines may share the transformer."""


@dataclass(frozen=True)
class LoadedBranches:
    """The skip branches that ``load_skip_branches`` has attached.

    Args:
        source: The folder or hub id that they come from.
        merge: ``residual`` or ``replace``.
        time_embedding: The timestep frequencies that the model has now; see ``SkipBranches``.
        plan: The plan whose scheduler and cache are in use, or None.
        former: The branches of each transformer before, which ``unload_skip_branches`` puts back; mostly None.
    """

    source: str
    merge: str
    time_embedding: str
    plan: Plan | None = None
    former: list[SkipBranches | None] = field(default_factory=list, repr=False)


def load_skip_branches(
    pipe: Any,
    pretrained_model_name_or_path: str | Path,
    *,
    subfolder: str = SKIP,
    plan: str | Path | bool | None = None,
    revision: str | None = None,
    **hub_arguments: Any,
) -> LoadedBranches:
    """Load skip branches onto a pipeline, with the time embedding and the plan that are recorded with them.

    A second call replaces the branches of the first; ``unload_skip_branches`` restores the pipeline bit for bit. Base
    weights that differ from those of the training are warned of.

    Args:
        pipe: A diffusers pipeline, or a transformer.
        pretrained_model_name_or_path: A model folder of ``skipdit``, its ``skip/`` folder alone, or a hub id of either
            (OWNER/NAME), of which the branches and plans are downloaded, and not the model.
        subfolder: The folder of the branches in it.
        plan: The name of a plan in its folder ``plans``, or the path of a plan's file: the pipeline gets the plan's
            scheduler and cache. By default the folder's only plan; False uses none. A transformer alone gets none.
        revision: The branch, tag or commit on the hub.
        hub_arguments: token, cache_dir, local_files_only, force_download.

    Returns:
        What has been loaded.

    Raises:
        UsageError: There are no branches or no such plan, or they were made for another model; nothing is changed
            then.
    """
    holder, transformers = split_model(pipe)
    hub_arguments |= {} if revision is None else {"revision": revision}
    where = find_branches(pretrained_model_name_or_path, subfolder, **hub_arguments)
    second = where.with_name(where.name.replace(SKIP, skip_folder(SECOND)))
    branches = [read_branches(folder) for folder in [where, second][: len(transformers)]]
    is_alone = where == Path(pretrained_model_name_or_path).expanduser()
    chosen = None if plan is False else _find_plan(None if is_alone else where.parent / PLANS, plan, holder)
    fits = [_fits(*pair) for pair in zip(transformers, branches)]  # each is checked
    if chosen is not None:
        check_plan(pipe, chosen)
    former = _attach(pipe, transformers, branches)
    config = branches[0].config
    source = str(pretrained_model_name_or_path)
    loaded = LoadedBranches(source, config.merge, config.time_embedding, chosen, former)
    setattr(unwrap_compiled(pipe), LOADED, loaded)
    if not all(fits):
        logger.warning("the skip branches of %s were trained with other weights than this model has.", source)
    if chosen is not None:
        use_plan(pipe, chosen)
    return loaded


def unload_skip_branches(pipe: Any) -> None:
    """Remove the skip branches of a pipeline or transformer, and the scheduler and cache of their plan.

    The model is then as before ``load_skip_branches``, bit for bit. A cache that was enabled by itself stays, and a
    pipeline without branches is left as it is.
    """
    loaded, (_, transformers) = loaded_skip_branches(pipe), split_model(pipe)
    if loaded is not None:
        delattr(unwrap_compiled(pipe), LOADED)
        _end_plan(pipe, loaded)
    for at, transformer in enumerate(transformers):
        remove_skip_branches(transformer)
        former = None if loaded is None else loaded.former[at]
        if former is not None:
            add_skip_branches(transformer, branches=former)


def loaded_skip_branches(pipe: Any) -> LoadedBranches | None:
    """Return what ``load_skip_branches`` has loaded onto a pipeline or transformer, or None."""
    return vars(unwrap_compiled(pipe)).get(LOADED)


def _attach(pipe: Any, transformers: list, branches: list[SkipBranches]) -> list[SkipBranches | None]:
    """Attach branches to each transformer, and return those that it had before the first ``load_skip_branches``."""
    loaded = loaded_skip_branches(pipe)
    trunks = [known_trunk(transformer) for transformer in transformers]
    current = [None if trunk is None else trunk.branches for trunk in trunks]
    try:
        for transformer, each in zip(transformers, branches):
            add_skip_branches(transformer, branches=each)
    except UsageError:
        for transformer, former in zip(transformers, current):
            if former is None:
                remove_skip_branches(transformer)
            else:
                add_skip_branches(transformer, branches=former)
        raise
    former = [getattr(each, FORMER, (each,))[0] for each in current]
    for each, before in zip(branches, former):
        setattr(each, FORMER, (before,))  # in a tuple, so that it is not a submodule
    if loaded is not None:
        _end_plan(pipe, loaded)
    return former


def _end_plan(pipe: Any, loaded: LoadedBranches) -> None:
    """Take the scheduler and the cache of the branches' plan off a pipeline, unless another plan is in use."""
    if loaded.plan is not None and plan_in_use(pipe) is loaded.plan:
        disable_skip_cache(pipe)


def _fits(transformer: Any, branches: SkipBranches) -> bool:
    """Return whether a transformer has the weights that branches were made for, as far as is known.

    Raises:
        UsageError: It has another class, depth, width or config.
    """
    check_branches(transformer, branches)
    return check_base(branches, transformer)


def _find_plan(folder: Path | None, plan: str | Path | bool | None, pipe: Any) -> Plan | None:
    """Return the plan that is named, or else the only one of the folder.

    Args:
        folder: The folder of the plans, which may be missing; None if there can be none.
        plan: A name, a path, or None.
        pipe: The pipeline, or None for a transformer alone.

    Raises:
        UsageError: There is no such plan, or a transformer alone is given one.
    """
    is_named = plan is not None and plan is not True
    if pipe is None:
        if is_named:
            raise UsageError(f"Got the plan {plan} for a transformer alone; give the pipeline, which has a scheduler.")
        return None
    if is_named and Path(str(plan)).is_file():
        return load_plan(str(plan))
    names = {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder is not None else {}
    if is_named:
        if str(plan) not in names:
            choices = f"has {', '.join(names)}" if names else "has no plans"
            raise UsageError(f"Got the plan '{plan}', but the model {choices}.{nearest(str(plan), names)}")
        return load_plan(names[str(plan)])
    if len(names) > 1:
        logger.warning("the skip branches have the plans %s, of which none is in use; give plan=.", ", ".join(names))
    return load_plan(*names.values()) if len(names) == 1 else None
