"""Many generations in one process, as a server makes them: each equals a fresh process, and memory stays where it was.

``pytest tests/cache/test_soak.py --soak 500`` makes 500 generations, each compared with a process of its own.
"""

import ctypes
import gc
import multiprocessing
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps

import diffusers
import psutil
import pytest
import torch

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, generate
from skipdit_cli.errors import UsageError
from tests.support import soak
from tests.support.processes import PRELOADED
from tests.support.tiny_pipelines import build, settings_of

WARM_UP, SHORT = 0.2, 8
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tiny_dit, tmp_path_factory):
    return soak.write_models(tmp_path_factory.mktemp("soak"), tiny_dit())


def held() -> tuple[int, int]:
    """The resident bytes of this process, and the number of its tensors."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    return psutil.Process().memory_info().rss, tensors


def in_new_process(folder, number) -> str:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=soak.serve_afresh_into, args=(folder, number, sender))
    process.start()
    sender.close()
    made = receiver.recv()
    process.join()
    return made


def test_every_generation_equals_a_fresh_process_and_memory_stays_flat(folder, request):
    count = request.config.getoption("--soak")
    server, began, warm = soak.Server(folder), time.perf_counter(), None
    made, figures = {}, []
    for number in range(count or SHORT):
        made[number] = server.serve(soak.draw(number))
        if count and (number + 1) % (count // 10) == 0:
            server.clear()
            figures.append(held())
            warm = figures[-1] if warm is None and number + 1 >= WARM_UP * count else warm
            print(f"{number + 1} generations: {figures[-1][0] / 2**20:.1f} MB, {figures[-1][1]} tensors", flush=True)
    if warm is not None:
        growth = [last / first - 1 for first, last in zip(warm, figures[-1])]
        print(f"resident {growth[0]:+.2%}, tensors {growth[1]:+.2%}; {time.perf_counter() - began:.0f} s", flush=True)
        assert max(growth) < 0.01
    anew = list(made) if count else [SHORT - 1]
    with ThreadPoolExecutor(2) as pool:
        alone = dict(zip(anew, pool.map(partial(in_new_process, folder), anew)))
    alone |= {number: soak.serve_afresh(folder, number) for number in made if number not in alone}
    different = [number for number in made if made[number] != alone[number]]
    print(f"{len(made) - len(different)} of {len(made)} equal")
    assert not different
    gone = [weakref.ref(part) for pipe in server.pipes.values() for part in (pipe, pipe.transformer)]
    del server
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


# Two transformers, exchanged schedulers, refused settings


def call(pipe, family="flux", steps=6, on_step=None, seed=0, **more):
    settings = settings_of(family)
    settings |= settings.pop("arguments") | {"output_type": "latent", "return_dict": False, **more}
    if on_step is not None:
        settings["callback_on_step_end"] = lambda pipe, step, t, tensors: on_step(step) or tensors
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat", num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **settings)[0]


def other_scheduler(pipe):
    return type(pipe.scheduler).from_config(pipe.scheduler.config)


def test_a_generation_with_another_scheduler_after_one_that_was_left_reuses_nothing_of_it():
    """Flux passes a timestep of its own making, which tells nothing of the scheduler's list."""
    pipe = build("flux")
    enable_skip_cache(pipe, CachePolicy(1, interval=3))
    expected = call(pipe)

    def leaves(step):
        pipe._interrupt = step == 1

    call(pipe, on_step=leaves, seed=1)
    pipe.scheduler = other_scheduler(pipe)
    assert torch.equal(call(pipe), expected)


def test_the_caches_of_two_transformers_follow_an_exchanged_scheduler_together():
    pipe = build("wan-2.2")
    caches = enable_skip_cache(pipe, CachePolicy(1, full_steps=4))
    expected = call(pipe, "wan-2.2", steps=6)
    plans = [cache.trace for cache in caches]
    pipe.scheduler = other_scheduler(pipe)
    assert torch.equal(call(pipe, "wan-2.2", steps=6), expected) and [cache.trace for cache in caches] == plans


def test_a_policy_that_is_refused_leaves_a_plan_and_the_caches_of_all_transformers(folder):
    server = soak.Server(folder)
    pipe = server._load("sd3")
    enable_skip_cache(pipe, folder / "sd3.yaml")
    scheduler = pipe.scheduler
    with pytest.raises(UsageError):
        enable_skip_cache(pipe, CachePolicy(40))
    assert pipe.scheduler is scheduler and len(call(pipe, "sd3")) == 1
    with pytest.raises(UsageError, match="made for 6 steps"):
        call(pipe, "sd3", steps=5)


def test_a_lora_that_is_unloaded_is_freed_while_the_cache_is_on():
    pipe = build("sd3")
    pipe.load_lora_weights(soak.lora(pipe.transformer, "a"), adapter_name="a")
    enable_skip_cache(pipe, CachePolicy(1))
    gone = [weakref.ref(weight) for name, weight in pipe.transformer.named_parameters() if "lora_" in name]
    pipe.unload_lora_weights()
    gc.collect()
    assert gone and [ref() for ref in gone] == [None] * len(gone)


# Threads


def in_threads(*works) -> list[list]:
    """What each work gives in a thread of its own: all results, and refusals; they take turns often."""
    results, start, interval = [[] for _ in works], threading.Barrier(len(works)), sys.getswitchinterval()

    def guarded(work, into):
        start.wait()
        for _ in range(4):
            try:
                into.append(work())
            except UsageError as refusal:
                into.append(str(refusal))

    threads = [threading.Thread(target=guarded, args=pair) for pair in zip(works, results)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return results


def right_or_refused(results, expected) -> None:
    for made, one in zip(results, expected, strict=True):
        assert len(made) == 4
        for each in made:
            assert "Got a second gener" in each if isinstance(each, str) else torch.equal(each, one)


def test_different_pipelines_in_two_threads_are_each_what_they_are_alone():
    pipes = {name: build(name) for name in ("flux", "sd3")}
    for pipe in pipes.values():
        enable_skip_cache(pipe, CachePolicy(1, interval=3))
    works = [lambda name=name, pipe=pipe: call(pipe, name) for name, pipe in pipes.items()]
    expected = [work() for work in works]
    results = in_threads(*works)
    right_or_refused(results, expected)
    assert all(isinstance(each, torch.Tensor) for made in results for each in made)


@pytest.mark.parametrize("shared", ["transformer", "pipeline"])
def test_one_transformer_in_two_threads_is_refused_or_right(shared):
    pipe = build("flux")
    other = pipe
    if shared == "transformer":
        other = diffusers.FluxPipeline(**{**pipe.components, "scheduler": other_scheduler(pipe)})
    enable_skip_cache(pipe, CachePolicy(1, interval=3))
    works = [lambda: call(pipe, steps=4), lambda: call(other, steps=7, seed=1)]
    expected = [work() for work in works]
    right_or_refused(in_threads(*works), expected)
    assert all(torch.equal(work(), one) for work, one in zip(works, expected))


@pytest.mark.parametrize("event", ["before the step", "before the first call"])
def test_a_thread_whose_generation_another_has_ended_moves_no_scheduler_of_it(event):
    """The other sets its timesteps while the first is between two calls; the first is refused, the other right."""
    pipe = build("flux")
    enable_skip_cache(pipe, CachePolicy(1, interval=3))
    expected, made = call(pipe, steps=7, seed=1), []

    def other():
        thread = threading.Thread(target=lambda: made.append(call(pipe, steps=7, seed=1)))
        thread.start()
        thread.join()

    owner, name = (pipe.scheduler, "step") if event == "before the step" else (pipe.transformer, "forward")
    inner, calls = getattr(owner, name), []

    @wraps(inner)
    def first(*args, **kwargs):
        calls.append(None)
        if len(calls) == 1:
            other()
        return inner(*args, **kwargs)

    setattr(owner, name, first)
    with pytest.raises(UsageError, match="Got a second generation"):
        call(pipe, steps=4)
    assert torch.equal(made[0], expected)


def test_generate_in_two_threads_is_refused_or_right():
    pipe, settings = build("flux"), settings_of("flux")

    def run(policy, seed):
        return generate(
            pipe, ["a cat"], policy=policy, num_inference_steps=5, seed=seed, decode=False, **settings
        ).latents

    works = [lambda: run(None, 0), lambda: run(CachePolicy(1, interval=2), 1)]
    expected = [work() for work in works]
    right_or_refused(in_threads(*works), expected)
    assert all(torch.equal(work(), one) for work, one in zip(works, expected))


def test_a_cache_is_not_changed_in_the_midst_of_a_call():
    pipe = build("flux")
    enable_skip_cache(pipe, CachePolicy(1))
    handle = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: disable_skip_cache(pipe))
    with pytest.raises(UsageError, match="in the middle of a call"):
        call(pipe)
    handle.remove()
    disable_skip_cache(pipe)
