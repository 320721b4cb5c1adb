"""The state dict inside what training scripts save: under ``ema`` or ``model``, in a wrapper, behind a prefix.

``torch.compile`` puts ``_orig_mod.`` before names, DDP ``module.``, Lightning the name of an attribute, FSDP more, and
they may be combined. The weights are recognised by a tensor that every official layout has: the patch embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from skipdit_cli.errors import UsageError

ANCHORS = ("x_embedder.proj.weight", "pos_embed.proj.weight")
"""The name of the patch embedding in each layout; what stands before it is the prefix of all names."""
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that libraries insert anywhere into names, and that no layout has."""
AVERAGE = re.compile(r"(^|[._-])ema|ema($|[._-])|shadow|averag", re.IGNORECASE)
UNNAMED = "shadow_params"
"""The key under which diffusers' ``EMAModel`` and torch-ema list their weights, in order and without names."""
DEEPEST = 4
"""The most keys that lead to a state dict."""


@dataclass(frozen=True)
class StateDict:
    """The weights of one model in a file.

    Args:
        tensors: The tensors, by their name in the official layout.
        place: The keys that lead to them in the file.
        prefix: What stands before each name in the file.
        anchored: Whether the patch embedding, which every official layout has, is among them.
        left: How many tensors beside them have another prefix.
        notes: What to tell the user about the choice, one sentence each.
    """

    tensors: dict[str, torch.Tensor]
    place: tuple[str, ...] = ()
    prefix: str = ""
    anchored: bool = False
    left: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def averaged(self) -> bool:
        """Whether the weights are a moving average, by the keys that lead to them."""
        return any(map(AVERAGE.search, (*self.place, self.prefix)))

    def __str__(self) -> str:
        where = f"'{'.'.join(self.place)}' weights" if self.place else "bare state dict"
        return where + (f", named behind '{self.prefix}'" if self.prefix else "")


def find_state_dict(path, data) -> StateDict:
    """Return the weights in a file; of several state dicts the moving average.

    Args:
        path: The file, for error messages.
        data: The content of the file.
    Raises:
        UsageError: The file holds no state dict, or only weights without names.
    """
    candidates = list(_state_dicts(path, data))
    if not candidates:
        if isinstance(data, dict) and any(_is_unnamed(value) for value in (data, *data.values())):
            raise UsageError(
                f"Checkpoint {path} holds a moving average whose weights have no names ({UNNAMED}); give the file or "
                "folder of the model itself."
            )
        raise UsageError(
            f"Checkpoint {path} holds no state dict; expected tensors by name, or 'ema' or 'model' of them."
        )
    chosen = min(candidates, key=lambda each: (not each.anchored, not each.averaged))
    others = [each for each in candidates if each.anchored and each is not chosen]
    if chosen.averaged:
        _complete(chosen, next((each for each in others if not each.averaged), None))
    else:
        for key, value in data.items() if isinstance(data, dict) else ():
            if AVERAGE.search(str(key)) and not isinstance(value, torch.Tensor):
                what = f"weights without names ({UNNAMED})" if _is_unnamed(value) else "no weights"
                chosen.notes.append(f"Its '{key}' holds {what}, so the weights are those of the last step.")
    rivals = [str(each) for each in others if each.averaged == chosen.averaged]
    if rivals:
        chosen.notes.append(f"Left aside: {'; '.join(rivals)}.")
    if chosen.left and chosen.anchored:
        chosen.notes.append(f"Left aside: {chosen.left} tensors that are not behind '{chosen.prefix}'.")
    return chosen


def _state_dicts(path, data, place: tuple[str, ...] = ()) -> Iterator[StateDict]:
    """Yield every dict of named tensors in nested dicts; names with different prefixes make different ones."""
    if not isinstance(data, dict) or len(place) > DEEPEST:
        return
    raw = {name: value for name, value in data.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    named = {_unwrapped(name): name for name in raw}
    if len(named) < len(raw):
        twice = next(name for name in raw if named[_unwrapped(name)] != name)
        raise UsageError(f"Checkpoint {path} holds {twice} twice, under {named[_unwrapped(twice)]} too; keep one.")
    prefixes = {name[: -len(anchor)]: named[name][: -len(anchor)] for name in named for anchor in ANCHORS
                if f".{name}".endswith(f".{anchor}")}  # fmt: skip
    for prefix, shown in prefixes.items():
        longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        names = [name for name in named if name.startswith(prefix) and not (longer and name.startswith(longer))]
        tensors = {name.removeprefix(prefix): raw[named[name]] for name in names}
        within = sum(any(name.startswith(each) for each in prefixes) for name in named)
        yield StateDict(tensors, place, shown, True, len(named) - within)
    if raw and not prefixes:
        yield StateDict({name: raw[named[name]] for name in named}, place)
    for key, value in data.items():
        if isinstance(key, str):
            yield from _state_dicts(path, value, (*place, key))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _is_unnamed(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get(UNNAMED), (list, tuple))


def _complete(average: StateDict, model: StateDict | None) -> None:
    """Add the frozen weights to a moving average that holds the trained ones alone."""
    missing = [] if model is None else [name for name in model.tensors if name not in average.tensors]
    if not missing or not average.tensors.keys() <= model.tensors.keys():
        return
    average.tensors.update({name: model.tensors[name] for name in missing})
    shown = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
    average.notes.append(f"Taken from {model}, for the average has none: {shown}.")
