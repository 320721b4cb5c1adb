"""Context parallelism: several processes denoise one batch together, each a part of its tokens (diffusers)."""

from __future__ import annotations

import torch

from skipdit_cli import processes
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.sample_settings import SampleSettings

METHODS = ("ring", "ulysses")
RING_BACKEND = "_native_cudnn"
"""The attention of torch that returns what ring attention joins its parts by; it is for CUDA alone."""


def check_context_parallel(settings: SampleSettings, transformer, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse ``--context-parallel`` for a run that cannot have it.

    Args:
        settings: The settings of ``skipdit sample``.
        transformer: The transformer, or that of the outline.
        device, dtype: Those of the run.

    Raises:
        UsageError: The method is unknown or does not fit the device, there is one process, or the model has no plan
            for it, or too few attention heads; or weights are offloaded.
    """
    method, count = settings.context_parallel, processes.count()
    if method is None:
        return
    name, heads = type(transformer).__name__, transformer.config.get("num_attention_heads")
    if method not in METHODS:
        hint = nearest(method, METHODS)
        raise UsageError(f"Got --context-parallel {method}, allowed are {' and '.join(METHODS)}.{hint}")
    if settings.pipeline.cpu_offload is not None:
        raise UsageError(f"Got --context-parallel {method} with --cpu-offload; leave one of the two out.")
    if count == 1:
        raise UsageError(
            f"Got --context-parallel {method} and 1 process; start as many as there are devices, with torchrun "
            "--nproc_per_node N -m skipdit_cli sample ..."
        )
    if getattr(transformer, "_cp_plan", None) is None:
        raise UsageError(
            f"Got --context-parallel {method}, but diffusers has no plan to split the tokens of {name}; leave it out, "
            "and the processes share the images."
        )
    if method == "ring" and (device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16)):
        raise UsageError(
            f"Got --context-parallel ring on {device.type} in {str(dtype).removeprefix('torch.')}, where torch's "
            "attention lacks what it needs; give ulysses, or CUDA with --dtype bfloat16."
        )
    if method == "ulysses" and heads is not None and heads % count:
        raise UsageError(
            f"Got --context-parallel ulysses with {count} processes, but {name} has {heads} attention heads, which "
            "they cannot share evenly; start a number of processes that divides it."
        )


def enable_context_parallel(pipe, method: str, count: int) -> None:
    """Split the tokens of each transformer of a pipeline among all processes.

    Args:
        pipe: The pipeline, on its device.
        method: One of ``METHODS``.
        count: The number of processes.
    """
    from diffusers import ContextParallelConfig

    for transformer in transformers_of(pipe).values():
        config = ContextParallelConfig(**{f"{method}_degree": count})
        plan = _split_before_wrappers(transformer, config)
        with quiet():
            if transformer.device.type == "cpu":
                _enable_on_cpu(transformer, config, plan)
                continue
            if method == "ring":
                transformer.set_attention_backend(RING_BACKEND)
            transformer.enable_parallelism(config=config, cp_plan=plan)


def _split_before_wrappers(transformer, config) -> dict:
    """Split the inputs of blocks before our wrappers see them, and return the rest of the plan of the model.

    diffusers splits in a wrapper of ``forward``, under ours: the cache and the branches would see all tokens at the
    first block, and a part of them at the others. A forward pre-hook of torch comes before both.
    """
    from diffusers.hooks.context_parallel import ContextParallelSplitHook, _get_submodule_by_name

    plan = {}
    for name, entries in transformer._cp_plan.items():
        places = entries.values() if isinstance(entries, dict) else ()
        if not name or not places or any(getattr(place, "split_output", True) for place in places):
            plan[name] = entries
            continue
        modules = _get_submodule_by_name(transformer, name)
        for module in modules if isinstance(modules, list) else [modules]:
            hook = ContextParallelSplitHook(entries, config)
            hook.initialize_hook(module)
            module.register_forward_pre_hook(_PreHook(hook), with_kwargs=True)
    return plan


class _PreHook:
    """The split of diffusers as a forward pre-hook of torch."""

    def __init__(self, hook):
        self.hook = hook

    def __call__(self, module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.hook.pre_forward(module, *args, **kwargs)


def _enable_on_cpu(transformer, config, plan: dict) -> None:
    """Do what ``enable_parallelism`` does, which divides by the number of accelerators before."""
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(processes.rank(), processes.count(), torch.device("cpu"), mesh=mesh)
    transformer._parallel_config = parallel
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = parallel
    apply_context_parallel(transformer, config, plan)
