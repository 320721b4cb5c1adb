"""Attach skip branches to a diffusers transformer, and take them off again."""

from __future__ import annotations

from pathlib import Path

import torch

from skipdit_cli.backbones import Interposed, interpose, restore, trunk_of
from skipdit_cli.errors import UsageError
from skipdit_cli.skip.branches import SkipBranches

SKIP = "skip"


def add_skip_branches(transformer, merge: str = "residual", *, branches: SkipBranches | None = None) -> SkipBranches:
    """Give a transformer its skip branches, as its submodule ``skip_branches``.

    With ``merge="residual"`` the outputs stay equal bit for bit until the branches are trained. A second call
    replaces the branches of the first.

    Args:
        transformer: A diffusers transformer of a declared family.
        merge: ``residual`` or ``replace``, see ``SkipBranches``.
        branches: Branches to attach (loaded ones, say) instead of new ones.
    Returns:
        The branches, on the device and in the dtype of the transformer.
    Raises:
        UsageError: No trunk is known for the class, the branches were made for another model, or the weights of the
            transformer are offloaded.
    """
    trunk = trunk_of(transformer)
    expected = {"dim": trunk.width, "num_layers": len(trunk), "backbone": trunk.model_class}
    if branches is None:
        time_embedding = "official" if trunk.backbone.official_time else "diffusers"
        branches = SkipBranches(**expected, merge=merge, time_embedding=time_embedding)
    for key, value in expected.items():
        if branches.config[key] != value:
            raise UsageError(f"These skip branches have {key} {branches.config[key]} but the model has {value}.")
    hollow = any(parameter.is_meta for parameter in branches.parameters())
    if hollow and not _is_meta(transformer):
        raise UsageError("These skip branches hold no weights (meta tensors); load or make them first.")
    if not hollow and _is_meta(transformer) and any(hasattr(module, "_hf_hook") for module in transformer.modules()):
        raise UsageError("The transformer's weights are offloaded; add skip branches before offloading is enabled.")
    remove_skip_branches(transformer)
    reference = next(transformer.parameters())
    torch.nn.Module.to(branches, reference.device, reference.dtype)  # ModelMixin.to warns of a list that is empty
    transformer.skip_branches = branches.train(transformer.training)
    trunk.branches = branches
    trunk.update()
    interpose(transformer, "save_pretrained", SavedApart)
    return branches


def remove_skip_branches(transformer) -> SkipBranches | None:
    """Take the branches off; the transformer is as before ``add_skip_branches``. Returns them, None if none."""
    trunk = trunk_of(transformer)
    branches, trunk.branches = trunk.branches, None
    if branches is not None:
        restore(transformer, "save_pretrained")
        del transformer.skip_branches
    trunk.update()
    return branches


class SavedApart(Interposed):
    """A transformer's ``save_pretrained``: its own files as if it had no branches, and those in ``skip/``: beside the
    folder ``transformer`` of a pipeline, inside any other. So ``pipe.save_pretrained`` writes a Skip-DiT folder."""

    def __call__(self, save_directory, *args, **kwargs):
        transformer, folder = self.inner.__self__, Path(save_directory)
        branches = remove_skip_branches(transformer)
        try:
            self.inner(save_directory, *args, **kwargs)
        finally:
            add_skip_branches(transformer, branches=branches)
        branches.save_pretrained((folder.parent if folder.name == "transformer" else folder) / SKIP)


def _is_meta(module: torch.nn.Module) -> bool:
    return next(module.parameters()).is_meta
