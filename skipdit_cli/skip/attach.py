"""Attaching skip branches to a diffusers transformer, and removing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import Backbone
from skipdit_cli.families.pipeline_parts import FIRST, TRANSFORMERS, unwrap_compiled
from skipdit_cli.families.protocols import Transformer
from skipdit_cli.skip.base_weights import record_base
from skipdit_cli.skip.branches import SkipBranches
from skipdit_cli.skip.merge import SkipMerge
from skipdit_cli.skip.time_embedding import RECORD, set_time_embedding, time_embedding_of
from skipdit_cli.trunk import (
    Interposed,
    Trial,
    Trunk,
    attached_trunk,
    interpose,
    known_trunk,
    refuse_other_cache,
    remember_trunk,
    restore,
    trunk_of,
    update_wrappers,
)

SKIP = "skip"


def skip_folder(part: str) -> str:
    """Return the name of the folder for the branches of one of a pipeline's transformers."""
    return part.replace(FIRST, SKIP)


def add_skip_branches(
    transformer: Transformer,
    merge: str = "residual",
    example_inputs: dict[str, Any] | None = None,
    *,
    branches: SkipBranches | None = None,
) -> SkipBranches:
    """Attach skip branches to a transformer, as its submodule ``skip_branches``.

    With ``merge="residual"`` the outputs stay equal bit for bit until the branches are trained. A second call
    replaces the branches of the first. Given branches bring the time embedding that they were trained with;
    ``remove_skip_branches`` restores the model's own.

    Args:
        transformer: A diffusers transformer.
        merge: ``residual`` or ``replace``, see ``SkipBranches``; for new branches.
        example_inputs: The arguments of one forward. A class that is not declared needs them, for its trunk is found
            in that forward. The branches are then verified with them before the model is accepted.
        branches: Branches to attach, such as loaded ones, in the place of new ones. They record a trunk that was
            found.

    Returns:
        The branches, on the device and in the dtype of the transformer.

    Raises:
        UsageError: No trunk is known or found, the class has skips of its own, the branches were made for another
            model, the weights of the transformer are offloaded, or a cache of diffusers is enabled (it may be enabled
            afterwards).
    """
    model = unwrap_compiled(transformer)
    if isinstance(model, torch.nn.Module):
        refuse_other_cache(model, model.modules(), "add skip branches before a cache is enabled")
    if branches is not None and branches.config.trunk is not None and known_trunk(transformer) is None:
        remember_trunk(transformer, _recorded_trunk(transformer, branches.config.trunk))
    trial = None if example_inputs is None else Trial(transformer, example_inputs)
    trunk = trial.trunk if trial is not None else trunk_of(transformer)
    if trunk.backbone.native_skips:
        raise UsageError(f"Got {trunk.model_class}, which has skips of its own; enable the cache on it as it is.")
    is_new = branches is None
    if branches is None:
        branches = _new_branches(transformer, trunk, merge)
    elif merge not in ("residual", branches.config.merge):
        raise UsageError(f"Got merge '{merge}' with branches of the '{branches.config.merge}' merge; leave one out.")
    _check_fit(transformer, trunk, branches)
    former = trunk.branches
    _attach(transformer, trunk, branches)
    if trial is not None:
        try:
            trial.accept(exact=is_new and branches.config.merge == "residual")
        except UsageError:
            _detach(transformer, trunk)
            if former is not None:
                _attach(transformer, trunk, former)
            raise
    return branches


def check_branches(transformer: Transformer, branches: SkipBranches) -> None:
    """Check that skip branches were made for a transformer of this class, depth and width.

    Raises:
        UsageError: They were made for another model. A trunk that is not known yet is checked when it is found.
    """
    trunk = known_trunk(transformer)
    if trunk is not None:
        _check_fit(transformer, trunk, branches)


def remove_skip_branches(transformer: Transformer) -> SkipBranches | None:
    """Remove the skip branches of a transformer, which is then as before ``add_skip_branches``.

    Returns:
        The branches, or None if it had none.
    """
    trunk = attached_trunk(transformer)
    branches = None if trunk is None else trunk.branches
    if trunk is not None:
        _detach(transformer, trunk)
    return branches


def _new_branches(transformer, trunk: Trunk, merge: str) -> SkipBranches:
    if len(trunk) < 2:
        raise UsageError(f"Got {trunk.model_class} of {len(trunk)} block, too few for a skip branch.")
    current = getattr(transformer, "config", {}).get(RECORD) or time_embedding_of(transformer)
    time_embedding = current or ("official" if trunk.backbone.official_time else "diffusers")
    record = None if trunk.declared else trunk.backbone.record()
    return SkipBranches(**_shape(trunk), merge=merge, time_embedding=time_embedding, trunk=record)


def _shape(trunk: Trunk) -> dict:
    """What the config of branches says of the model they belong to."""
    return {"dim": trunk.width, "num_layers": len(trunk), "backbone": trunk.model_class}


def _check_fit(transformer, trunk: Trunk, branches: SkipBranches) -> None:
    """Check that branches belong to such a model, and can be moved to where its weights are.

    Raises:
        UsageError: They belong to another model, or one of the two has no weights.
    """
    for key, value in _shape(trunk).items():
        if branches.config[key] != value:
            raise UsageError(f"These skip branches have {key} {branches.config[key]} but the model has {value}.")
    empty = any(parameter.is_meta for parameter in branches.parameters())
    if empty and not _is_meta(transformer):
        raise UsageError("These skip branches hold no weights (meta tensors); load or make them first.")
    if not empty and _is_meta(transformer) and any(hasattr(module, "_hf_hook") for module in transformer.modules()):
        raise UsageError("The transformer's weights are offloaded; add skip branches before offloading is enabled.")


def _attach(transformer, trunk: Trunk, branches: SkipBranches) -> None:
    _detach(transformer, trunk)
    trunk.merge = SkipMerge(branches, trunk, time_embedding_of(transformer))
    set_time_embedding(transformer, branches.config.time_embedding)
    device = next(transformer.parameters()).device
    torch.nn.Module.to(branches, device, _dtype(transformer))  # ModelMixin.to warns of a list that is empty
    transformer.skip_branches = branches.train(transformer.training)
    update_wrappers(transformer, trunk)
    if hasattr(transformer, "save_pretrained"):
        interpose(transformer, "save_pretrained", SeparateSave)


def _detach(transformer, trunk: Trunk) -> None:
    merge, trunk.merge = trunk.merge, None
    if merge is not None:
        restore(transformer, "save_pretrained")
        del transformer.skip_branches
        if merge.former_time_embedding is not None:
            set_time_embedding(transformer, merge.former_time_embedding)
    update_wrappers(transformer, trunk)


def _recorded_trunk(transformer, record: dict) -> Trunk:
    """The trunk that was found when branches were made, as their config records it.

    Raises:
        UsageError: The record does not fit the class any more.
    """
    try:
        return Trunk(transformer, Backbone.from_record(record), declared=False)
    except (KeyError, TypeError, AttributeError) as cause:
        raise UsageError(f"These skip branches record no trunk ({cause}); convert the model again.") from cause


class SeparateSave(Interposed):
    """A transformer's ``save_pretrained`` that saves its branches apart from it, in a folder ``skip``.

    That folder lies beside a folder named ``transformer``, as a pipeline has, and inside any other. So
    ``pipe.save_pretrained`` writes a Skip-DiT pipeline folder.
    """

    def __call__(self, save_directory, *args, **kwargs):
        transformer, folder = self.inner.__self__, Path(save_directory)
        branches = transformer._modules.pop("skip_branches")
        try:
            self.inner(save_directory, *args, **kwargs)
        finally:
            transformer.skip_branches = branches
        beside = folder.name in TRANSFORMERS
        if kwargs.get("is_main_process", True):  # each of several processes that train one model calls this
            record_base(branches, transformer.state_dict())
            branches.save_pretrained(folder.parent / skip_folder(folder.name) if beside else folder / SKIP)


def _dtype(transformer) -> torch.dtype:
    """What the transformer computes in: neither the dtype of parts that diffusers keeps in float32 (Wan's modulation),
    nor that of quantised weights, which are integers or have eight bits."""
    kept = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    dtypes = (
        parameter.dtype for name, parameter in transformer.named_parameters() if not any(part in name for part in kept)
    )
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)


def _is_meta(module: torch.nn.Module) -> bool:
    return next(module.parameters()).is_meta
