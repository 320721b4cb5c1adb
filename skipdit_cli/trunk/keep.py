"""The trunk of a model, and the wrappers that are on the model while anything is attached to its trunk."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import declared_trunk
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.trunk.block import InterposedBlock
from skipdit_cli.trunk.discover import check_class
from skipdit_cli.trunk.forward_state import TrunkForward
from skipdit_cli.trunk.interpose import find, interpose, interpose_outside, restore
from skipdit_cli.trunk.other_caches import other_cache
from skipdit_cli.trunk.trunk import Trunk, class_of

COMPILED = "_compiled_call_impl"
"""The attribute in which ``torch.nn.Module.compile`` keeps what a module is called by from then on."""
_ATTRIBUTE = "_skipdit_trunk"
_found_backbones: WeakKeyDictionary = WeakKeyDictionary()
"""Model to the backbone that was found in it. It is plain data: what refers to the model would keep it alive."""


def attached_trunk(transformer) -> Trunk | None:
    """Return the trunk that branches or a cache are attached to, or None if nothing is attached."""
    return unwrap_compiled(transformer).__dict__.get(_ATTRIBUTE)


def known_trunk(transformer) -> Trunk | None:
    """Return the trunk of a model whose class is declared, or whose trunk was found before; None for another.

    Raises:
        UsageError: It is no model, or it does not have the blocks that are declared for its class.
    """
    transformer = unwrap_compiled(transformer)
    if not isinstance(transformer, torch.nn.Module):
        raise UsageError(f"Got {type(transformer).__name__} but expected a transformer, such as pipe.transformer.")
    trunk = attached_trunk(transformer)
    if trunk is not None:
        return trunk
    found, declared = _found_backbones.get(transformer), declared_trunk(class_of(transformer))
    backbone = found or declared
    return None if backbone is None else Trunk(transformer, backbone, declared=found is None)


def trunk_of(transformer) -> Trunk:
    """Return the trunk of a model.

    Raises:
        UsageError: The model has none, or its class is not declared and its trunk has not been found yet.
    """
    trunk = known_trunk(transformer)
    if trunk is None:
        transformer = unwrap_compiled(transformer)
        check_class(transformer)
        raise UsageError(
            f"Got {type(transformer).__name__}, whose transformer trunk is not declared; give example_inputs, the "
            "arguments of a forward."
        )
    return trunk


def remember_trunk(transformer, trunk: Trunk) -> None:
    """Remember where the trunk of a model of an undeclared class lies, so that ``known_trunk`` knows it."""
    if not trunk.declared:
        _found_backbones[unwrap_compiled(transformer)] = trunk.backbone


def update_wrappers(transformer, trunk: Trunk) -> None:
    """Wrap the model's forward and its blocks while anything is attached to the trunk; unwrap them otherwise.

    The trunk itself is then an attribute of the model, so that copies of the model have it too.
    """
    transformer = unwrap_compiled(transformer)
    wrap_blocks(trunk)
    hooks = transformer._forward_pre_hooks
    checks = [key for key, hook in hooks.items() if isinstance(hook, WrapperCheck)]
    if trunk.in_use:
        transformer.__dict__[_ATTRIBUTE] = trunk
        interpose(transformer, "forward", partial(TrunkForward, trunk=trunk), TrunkForward)
        if not checks:
            transformer.register_forward_pre_hook(WrapperCheck(trunk))
    else:
        transformer.__dict__.pop(_ATTRIBUTE, None)
        restore(transformer, "forward", TrunkForward)
        for key in checks:
            del hooks[key]
    if trunk.verified:  # a copy of a model remembers nothing yet
        remember_trunk(transformer, trunk)


def keep_wrapped(transformer, wrapped: bool) -> None:
    """Keep the same wrapper on each block while branches and caches come and go, or end that.

    Compiled code is bound to the wrappers: with ``wrapped`` one compilation serves them all.
    """
    trunk = trunk_of(transformer)
    trunk.always_wrapped = wrapped
    update_wrappers(transformer, trunk)


def wrap_blocks(trunk: Trunk) -> None:
    """Wrap every block of a trunk that is in use; unwrap the blocks of one that is not. Idempotent.

    Raises:
        UsageError: A cache of diffusers is on blocks that the wrapper would come to lie over.
    """
    if trunk.in_use and (other := other_cache([block for block in trunk.blocks if not _is_wrapped(block)])):
        raise UsageError(
            f"Got {trunk.model_class} with diffusers' {other} on blocks that skipdit has to wrap first; disable "
            "it (transformer.disable_cache()), and enable it again after branches are added and blocks are compiled."
        )
    for index, unit in enumerate(trunk.units):
        for position, block in enumerate(unit):
            method = _called_method(block) if trunk.in_use else None
            for name in {"forward", COMPILED} - {method}:
                restore(block, name, InterposedBlock)
            if method is not None:
                make = partial(InterposedBlock, trunk=trunk, index=index, position=position)
                interpose_outside(block, method, make)


class WrapperCheck:
    """A forward pre-hook of a transformer that wraps its blocks again where that is needed.

    Offload hooks take our wrappers along when they are removed, and blocks may be compiled or replaced by compiled
    ones. A hook stays where it is in all these cases.

    Attributes:
        methods: Each block with what its call ended up in when its wrapper was last looked for. A copy has none.
    """

    def __init__(self, trunk: Trunk):
        self.trunk = trunk
        self.methods: list[tuple] = []

    def __reduce__(self):
        return WrapperCheck, (self.trunk,)

    def __call__(self, transformer, args) -> None:
        if torch.compiler.is_compiling() or self._is_as_before(transformer):
            return
        trunk, units = self.trunk, self.trunk.current_units(transformer)
        if units != trunk.units:
            for block in trunk.blocks:
                restore(block, "forward", InterposedBlock)
                restore(block, COMPILED, InterposedBlock)
            trunk.set_units(units)
        if not all(_is_wrapped(block) for block in trunk.blocks):
            wrap_blocks(trunk)
        blocks = self.trunk.current_blocks(transformer)
        self.methods = [(block, block.__dict__.get("forward"), block.__dict__.get(COMPILED)) for block in blocks]

    def _is_as_before(self, transformer) -> bool:
        """Whether the model has the same blocks, and each the same methods that a call may end up in. It is asked in
        each forward."""
        blocks = self.trunk.current_blocks(transformer)
        if len(blocks) != len(self.methods):
            return False
        for block, (former, forward, compiled) in zip(blocks, self.methods):
            own = block.__dict__
            if block is not former or own.get("forward") is not forward or own.get(COMPILED) is not compiled:
                return False
        return True


def _called_method(block) -> str:
    """The attribute that a call of the block ends up in: ``forward``, or what was compiled of it."""
    return "forward" if block.__dict__.get(COMPILED) is None else COMPILED


def _is_wrapped(block) -> bool:
    """Whether the block has its wrapper, maybe under the wrappers of other libraries."""
    return find(block, _called_method(block), InterposedBlock) is not None
