"""Attach skip branches to a diffusers transformer, and take them off again."""

from __future__ import annotations

from pathlib import Path

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import Backbone
from skipdit_cli.families.pipeline_parts import FIRST, TRANSFORMERS
from skipdit_cli.skip.branches import SkipBranches
from skipdit_cli.skip.time_embedding import RECORD, set_time_embedding, time_embedding_of
from skipdit_cli.trunk import (
    Interposed,
    Trial,
    Trunk,
    attached_trunk,
    interpose,
    keep_trunk,
    known_trunk,
    refuse_other_cache,
    restore,
    trunk_of,
)

SKIP = "skip"


def skip_folder(part: str) -> str:
    """Return the name of the folder that holds the branches of one of a pipeline's transformers."""
    return part.replace(FIRST, SKIP)


def add_skip_branches(
    transformer,
    merge: str = "residual",
    example_inputs: dict | None = None,
    *,
    branches: SkipBranches | None = None,
) -> SkipBranches:
    """Give a transformer its skip branches, as its submodule ``skip_branches``.

    With ``merge="residual"`` the outputs stay equal bit for bit until the branches are trained. A second call
    replaces the branches of the first. Branches that are given bring the time embedding that they were trained with;
    ``remove_skip_branches`` puts the model's own back.

    Args:
        transformer: A diffusers transformer.
        merge: ``residual`` or ``replace``, see ``SkipBranches``; of new branches.
        example_inputs: Arguments of one forward. Needed for a class that is not declared: the trunk is found in it.
            Where they are given, the branches are tried out on them, and a model that does not bear it is refused.
        branches: Branches to attach (loaded ones, say) instead of new ones; they know what was found before.
    Returns:
        The branches, on the device and in the dtype of the transformer.
    Raises:
        UsageError: No trunk is known or found, the class has skips of its own, the branches were made for another
            model, the weights of the transformer are offloaded, or a cache of diffusers is on (it may come after).
    """
    whole = getattr(transformer, "_orig_mod", transformer)
    if isinstance(whole, torch.nn.Module):
        refuse_other_cache(whole, whole.modules(), "branches go on before it, or it leaves them out twice")
    if branches is not None and branches.config.trunk is not None and known_trunk(transformer) is None:
        keep_trunk(transformer, _recorded_trunk(transformer, branches.config.trunk))
    trial = None if example_inputs is None else Trial(transformer, example_inputs)
    trunk = trial.trunk if trial is not None else trunk_of(transformer)
    if trunk.backbone.native_skips:
        raise UsageError(f"Got {trunk.model_class}, which has skips of its own; enable the cache on it as it is.")
    expected = {"dim": trunk.width, "num_layers": len(trunk), "backbone": trunk.model_class}
    new = branches is None
    if not new and merge not in ("residual", branches.config.merge):
        raise UsageError(f"Got merge '{merge}' with branches of the '{branches.config.merge}' merge; leave one out.")
    if new:
        if len(trunk) < 2:
            raise UsageError(f"Got {trunk.model_class} of {len(trunk)} block, too few for a skip branch.")
        own = getattr(transformer, "config", {}).get(RECORD) or time_embedding_of(transformer)
        time_embedding = own or ("official" if trunk.backbone.official_time else "diffusers")
        record = None if trunk.declared else trunk.backbone.record()
        branches = SkipBranches(**expected, merge=merge, time_embedding=time_embedding, trunk=record)
    for key, value in expected.items():
        if branches.config[key] != value:
            raise UsageError(f"These skip branches have {key} {branches.config[key]} but the model has {value}.")
    hollow = any(parameter.is_meta for parameter in branches.parameters())
    if hollow and not _is_meta(transformer):
        raise UsageError("These skip branches hold no weights (meta tensors); load or make them first.")
    if not hollow and _is_meta(transformer) and any(hasattr(module, "_hf_hook") for module in transformer.modules()):
        raise UsageError("The transformer's weights are offloaded; add skip branches before offloading is enabled.")
    former = trunk.branches
    _put_on(transformer, trunk, branches)
    if trial is not None:
        try:
            trial.accept(exact=new and branches.config.merge == "residual")
        except UsageError:
            _take_off(transformer, trunk)
            if former is not None:
                _put_on(transformer, trunk, former)
            raise
    return branches


def _put_on(transformer, trunk: Trunk, branches: SkipBranches) -> None:
    _take_off(transformer, trunk)
    trunk.time_embedding = time_embedding_of(transformer)
    set_time_embedding(transformer, branches.config.time_embedding)
    device = next(transformer.parameters()).device
    torch.nn.Module.to(branches, device, _dtype(transformer))  # ModelMixin.to warns of a list that is empty
    transformer.skip_branches = branches.train(transformer.training)
    trunk.branches = branches
    keep_trunk(transformer, trunk)
    if hasattr(transformer, "save_pretrained"):
        interpose(transformer, "save_pretrained", SavedApart)


def _take_off(transformer, trunk: Trunk) -> None:
    branches, trunk.branches = trunk.branches, None
    if branches is not None:
        restore(transformer, "save_pretrained")
        del transformer.skip_branches
        if trunk.time_embedding is not None:
            set_time_embedding(transformer, trunk.time_embedding)
    keep_trunk(transformer, trunk)


def _recorded_trunk(transformer, record: dict) -> Trunk:
    """
    Raises:
        UsageError: What was found when the branches were made does not fit the class any more.
    """
    try:
        return Trunk(transformer, Backbone.from_record(record), declared=False)
    except (KeyError, TypeError, AttributeError) as cause:
        raise UsageError(f"These skip branches record no trunk ({cause}); convert the model anew.") from cause


def remove_skip_branches(transformer) -> SkipBranches | None:
    """Take the branches off; the transformer is as before ``add_skip_branches``. Returns them, None if none."""
    trunk = attached_trunk(transformer)
    branches = None if trunk is None else trunk.branches
    if trunk is not None:
        _take_off(transformer, trunk)
    return branches


class SavedApart(Interposed):
    """A transformer's ``save_pretrained``: its own files as if it had no branches, and those in ``skip/``: beside the
    folder ``transformer`` of a pipeline, inside any other. So ``pipe.save_pretrained`` writes a Skip-DiT folder."""

    def __call__(self, save_directory, *args, **kwargs):
        transformer, folder = self.inner.__self__, Path(save_directory)
        branches = transformer._modules.pop("skip_branches")
        try:
            self.inner(save_directory, *args, **kwargs)
        finally:
            transformer.skip_branches = branches
        beside = folder.name in TRANSFORMERS
        if kwargs.get("is_main_process", True):  # of several that train one model, each calls this
            branches.save_pretrained(folder.parent / skip_folder(folder.name) if beside else folder / SKIP)


def _dtype(transformer) -> torch.dtype:
    """What the transformer computes in: not the dtype of parts that diffusers keeps in float32 (Wan's modulation), nor
    that of quantised weights, which are integers or of eight bits."""
    kept = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    dtypes = (
        parameter.dtype for name, parameter in transformer.named_parameters() if not any(part in name for part in kept)
    )
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)


def _is_meta(module: torch.nn.Module) -> bool:
    return next(module.parameters()).is_meta
