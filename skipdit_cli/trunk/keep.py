"""How a trunk is kept on its model, and what is known of a model's."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import declared_trunk
from skipdit_cli.trunk.discover import check_class
from skipdit_cli.trunk.forward_state import InPlace, TrunkForward
from skipdit_cli.trunk.interpose import interpose, restore
from skipdit_cli.trunk.trunk import Trunk, class_of

_ATTRIBUTE = "_skipdit_trunk"
_found: WeakKeyDictionary = WeakKeyDictionary()
"""Model to the backbone that was found in it: plain data, for what led back to the model would keep it alive."""


def attached_trunk(transformer) -> Trunk | None:
    """The trunk that something is attached to (``torch.compile`` is looked through)."""
    return getattr(transformer, "_orig_mod", transformer).__dict__.get(_ATTRIBUTE)


def known_trunk(transformer) -> Trunk | None:
    """The trunk of a model, if its class is declared or it has been found before.

    Raises:
        UsageError: It is no model, or not of the shape that is declared for its class.
    """
    transformer = getattr(transformer, "_orig_mod", transformer)
    if not isinstance(transformer, torch.nn.Module):
        raise UsageError(f"Got {type(transformer).__name__} but expected a transformer, such as pipe.transformer.")
    trunk = attached_trunk(transformer)
    if trunk is not None:
        return trunk
    found, declared = _found.get(transformer), declared_trunk(class_of(transformer))
    backbone = found or declared
    return None if backbone is None else Trunk(transformer, backbone, declared=found is None)


def keep_trunk(transformer, trunk: Trunk) -> None:
    """Keep a trunk on its model, which copies of the model then have too. Nothing is kept on a model that nothing is
    attached to; what was found of it is remembered elsewhere."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    trunk.update()
    hooks = transformer._forward_pre_hooks
    ours = [key for key, hook in hooks.items() if isinstance(hook, InPlace)]
    if trunk.in_use:
        transformer.__dict__[_ATTRIBUTE] = trunk
        interpose(transformer, "forward", partial(TrunkForward, trunk=trunk), TrunkForward)
        if not ours:
            transformer.register_forward_pre_hook(InPlace(trunk))
    else:
        transformer.__dict__.pop(_ATTRIBUTE, None)
        restore(transformer, "forward", TrunkForward)
        for key in ours:
            del hooks[key]
    if trunk.accepted and not trunk.declared:
        _found[transformer] = trunk.backbone


def trunk_of(transformer) -> Trunk:
    """The trunk of a model.

    Raises:
        UsageError: It can have none, or its class is not declared and nothing has been found yet.
    """
    trunk = known_trunk(transformer)
    if trunk is None:
        check_class(getattr(transformer, "_orig_mod", transformer))
        name = type(getattr(transformer, "_orig_mod", transformer)).__name__
        raise UsageError(
            f"Got {name}, whose transformer trunk is not declared; give example_inputs, the arguments of a forward."
        )
    return trunk
