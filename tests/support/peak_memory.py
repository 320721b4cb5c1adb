"""The peak of memory that real steps take on a CPU, from the events of torch's allocator: torch's profiler has all of
them, those within operators too."""

from collections.abc import Callable

import torch
from diffusers.training_utils import EMAModel
from torch.profiler import ProfilerActivity, profile

from skipdit_cli.families.example import example_inputs


def allocated_peak(run: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at once in a call, beside what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peak_of_training(model, workload, ema: bool = True) -> int:
    """Return the peak of a training step that others came before, with the weights, AdamW and the moving average.

    Args:
        model: A real transformer, which is trained as it is: its ``requires_grad`` flags count.
        workload: The ``Workload``.
    """
    model.train()
    if workload.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    average = EMAModel(trained, decay=0.9, foreach=True) if ema else None

    def step() -> None:
        inputs = example_inputs(model, workload.batch, size=workload.size)
        with torch.autocast("cpu", torch.bfloat16, enabled=workload.mixed_precision == "bf16"):
            output = model(**inputs, return_dict=False)[0]
        loss = (output.float() - torch.zeros_like(output, dtype=torch.float32)).square().mean()
        del output
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if average is not None:
            average.step(trained)
        optimizer.zero_grad()

    step()
    kept = [*model.parameters(), *model.buffers(), *(average.shadow_params if average else [])]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in kept) + allocated_peak(step)


def peak_of_sampling(model, batch: int) -> int:
    """Return the peak of a sampling forward of a real transformer, with its weights."""
    model.eval()
    inputs = example_inputs(model, batch, dtype=next(model.parameters()).dtype)

    @torch.no_grad()
    def forward() -> None:
        model(**inputs, return_dict=False)

    forward()
    inputs_bytes = sum(each.nbytes for each in inputs.values() if isinstance(each, torch.Tensor))
    return sum(tensor.nbytes for tensor in model.parameters()) + inputs_bytes + allocated_peak(forward)
