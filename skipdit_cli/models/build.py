"""Build a transformer from its config, and a pipeline around a transformer."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from skipdit_cli.errors import UsageError, nearest, reading
from skipdit_cli.families import FAMILIES, class_name, class_named, family_of
from skipdit_cli.families.dit import FAMILY as DIT
from skipdit_cli.models.bounds import UNKNOWN, Room
from skipdit_cli.models.claims import check_model
from skipdit_cli.presets import Preset
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.schedulers import follows_flow
from skipdit_cli.skip.time_embedding import NUM_TIMESTEPS


def build_transformer(config: dict):
    """Return a transformer in eval mode with random weights, or without weights under ``torch.device("meta")`` and
    accelerate's ``init_empty_weights``.

    Args:
        config: ``_class_name`` (that of DiT if it is missing) and the arguments of that class.
    Raises:
        UsageError: There is no such class, or it does not take these arguments.
    """
    config = as_named_now({"_class_name": DIT.name, **config})
    what = f"Got a transformer config for {config['_class_name']}"
    # diffusers warns of unknown keys at each build; loading says it once
    with reading(what, failed="that diffusers cannot build"), quiet(errors_only=True):
        return _build(config).eval()


def _build(config: dict):
    kind, build = class_named(config["_class_name"]), family_of(config["_class_name"]).build
    return kind.from_config(config) if build is None else build(kind, config)


def check_transformer(config: dict, where: str, shapes=None, room: Room = UNKNOWN, file: str = "config.json") -> None:
    """Check, as ``check_model`` does, that a transformer can be built from a config, before ``build_transformer``.

    Args:
        where: Name of the model or its folder, for the error.
        shapes, room, file: As for ``check_model``.
    Raises:
        UsageError: It cannot, or there is no such class.
    """
    name = config["_class_name"]
    if not is_transformer(name):
        raise UsageError(f"{where} has a model of class {name}, which is no transformer of diffusers.")
    check_model(class_named(name), config, where, shapes, room, _build, file)


def as_named_now(config: dict) -> dict:
    """Return a transformer's config with the present name of its class, so that diffusers reads it too.

    Keys that only the class of the former name took are left out.
    """
    name = class_name(config["_class_name"], config)
    if name == config["_class_name"]:
        return dict(config)
    known = config_keys(name)
    return {key: value for key, value in config.items() if key in known or key.startswith("_")} | {"_class_name": name}


def config_keys(name: str) -> set[str]:
    """Return the keys that the config of a transformer class may have, by the name of the class."""
    return {*inspect.signature(class_named(name).__init__).parameters, *family_of(name).own_keys} - {"self"}


def preset_config(preset: Preset, room: Room = UNKNOWN) -> dict:
    """Return the config of the transformer that a preset names.

    Raises:
        UsageError: diffusers cannot build it, or would ignore a key of its config, or there is no room for it.
    """
    config = as_named_now({"_class_name": preset.model["class"], **preset.model["config"]})
    check_transformer(config, f"Preset {preset.name}", room=room, file="model")
    known = config_keys(config["_class_name"])
    for key in config:
        if key not in known and not key.startswith("_"):
            raise UsageError(
                f"Preset {preset.name} has a model with '{key}', which a {config['_class_name']} does not take."
                f"{nearest(key, known)}"
            )
    return config


def is_transformer(name) -> bool:
    """Return whether there is a transformer class of this name, of a registered family or in diffusers."""
    try:
        kind = class_named(str(name))
    except (AttributeError, RuntimeError):
        return False
    return str(name) in FAMILIES or getattr(kind, "__module__", "").startswith("diffusers.models.transformers.")


def has_own_time(name: str) -> bool:
    """Return whether a transformer class has only one spacing of timestep frequencies."""
    trunk = family_of(name).trunk
    return trunk is None or trunk.official_time


def has_own_keys(config: dict) -> bool:
    """Return whether a transformer's config has keys that diffusers' class does not know, such as DiT's
    ``mlp_ratio``."""
    return any(key in config for key in family_of(config.get("_class_name", DIT.name)).own_keys)


def default_scheduler(name: str = DIT.name, flow: bool = False):
    """Return the noise schedule that DiT and Latte were trained with: 1000 linear betas from 1e-4 to 0.02.

    Args:
        name: Class name of the transformer, which decides the spacing of timesteps.
        flow: Return the schedule of SiT instead, the straight path from noise to data.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if flow:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TIMESTEPS)
    pipeline: Any = family_of(name).pipeline or DIT.pipeline
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing=pipeline.timestep_spacing,
    )


def pipeline_around(transformer, scheduler, vae=None):
    """Return the pipeline of a transformer's family with these parts; its other required parts are None.

    A scheduler of flow matching selects the family's pipeline for that, such as ``SiTPipeline``.

    Raises:
        UsageError: The pipeline needs more parts.
    """
    family = family_of(transformer)
    if family.pipeline is None:
        raise UsageError(
            f"Got {family.name} alone, but its pipeline has more parts; give the folder or hub id of a whole one."
        )
    name, flow = family.pipeline.name, family.pipeline.flow
    kind = class_named(name if flow is None or not follows_flow(scheduler) else flow)
    given = {"transformer": transformer, "scheduler": scheduler, "vae": vae}
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    required = [each.name for each in parameters if each.name in given or each.default is each.empty]
    return kind(**{name: given.get(name) for name in required})


def assign_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], source, extra: bool = False) -> None:
    """Put a state dict into a model on the meta device, without a copy.

    Args:
        source: Where the tensors come from, for the error message.
        extra: Ignore tensors that the model has no place for, as diffusers does.
    Raises:
        UsageError: A tensor is missing, of another shape, or (without ``extra``) left over.
    """
    own = model.state_dict()
    if extra:
        state = {name: tensor for name, tensor in state.items() if name in own}
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    both = [name for name in own if name in state]
    wrong = [name for name in both if own[name].shape != state[name].shape]
    whole = [name for name in both if own[name].is_floating_point() and not state[name].is_floating_point()]
    if missing or left or wrong or whole:
        parts = {"missing": missing, "not expected": left, "of another shape": wrong, "of no floats": whole}
        mismatch = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in parts.items() if names)
        raise UsageError(f"{source} does not fit a {type(model).__name__} ({mismatch}).")
    model.load_state_dict(state, assign=True)
