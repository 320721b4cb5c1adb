"""Generations as a server makes them: each drawn from its number, on pipelines that stay loaded, or on new ones."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

from skipdit_cli import (
    CachePolicy,
    add_skip_branches,
    disable_skip_cache,
    enable_skip_cache,
    generate,
    load_pipeline,
    load_plan,
    load_skip_branches,
    loaded_skip_branches,
    unload_skip_branches,
)
from skipdit_cli.errors import SkipditError
from skipdit_cli.models import save_pipeline
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler
from tests.support.tiny_dit_runs import train_a_little
from tests.support.tiny_pipelines import build, settings_of, write_pipeline

PLAN_STEPS = 6
DIFFUSION = (None, "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
FLOW = (None, "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
UNIPC = (None, "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
SCHEDULERS = {"dit": DIFFUSION, "pixart-sigma": DIFFUSION, "sd3": FLOW, "flux": FLOW[:2], "wan-2.2": UNIPC}
"""The families, and the schedulers that each is sampled with; None is its own."""
LORAS = ("sd3", "flux", "wan-2.2")
"""The families whose transformers take a LoRA by diffusers."""
CACHES = {
    "fast": "fast",
    "quality": "quality",
    "interval": CachePolicy(1, interval=3, forecast="linear"),
    "reuse": CachePolicy((1, 0), interval=2, forecast="reuse"),
    "late": CachePolicy((2, 1), full_steps=3),
    "threshold": CachePolicy((1, 0), threshold=0.3),
    "plan": "plan",
    "none": None,
}
TROUBLES = ("interrupted", "stopped", "error in a block", "other steps than the plan's", "too deep", "disabled within")
PROMPTS = ("a red cat", "a dog runs", "red", "a cat and a dog and a cat")


@dataclass(frozen=True)
class Request:
    """One generation: what it is of, the state that its pipeline is put into, and what goes wrong before it."""

    number: int
    family: str
    how: str
    steps: int
    batch: int
    size: int
    frames: int
    guidance: float
    scheduler: str | None
    branches: bool
    cache: str
    lora: str | None
    trouble: str | None

    @property
    def prompts(self) -> list:
        prompts = range(10) if self.family == "dit" else PROMPTS
        return [prompts[(self.number + at) % len(prompts)] for at in range(self.batch)]


def draw(number: int, families: tuple[str, ...] = tuple(SCHEDULERS)) -> Request:
    """Return the request of a number."""
    chance = random.Random(number)
    family = chance.choice(families)
    how = chance.choice(("call", "call", "call", "generate", "image" if family == "sd3" else "call"))
    cache = chance.choice(list(CACHES))
    cache = "fast" if cache == "plan" and how == "image" else cache
    request = Request(
        number, family, how,
        steps=chance.choice((4, 5, 8, 12)), batch=chance.choice((1, 1, 2, 3)),
        size=chance.choice((16, 24) if family == "sd3" else (16, 32)),
        frames=chance.choice((1, 5, 9)), guidance=chance.choice((1.0, 3.0, 4.5)),
        scheduler=chance.choice(SCHEDULERS[family]), branches=chance.random() < 0.6, cache=cache,
        lora=chance.choice((None, "a", "b", "fused")) if family in LORAS else None,
        trouble=chance.choice(TROUBLES) if chance.random() < 0.25 else None,
    )  # fmt: skip
    if cache == "plan":
        request = replace(request, steps=PLAN_STEPS, scheduler=None)
    return request


def write_models(folder: Path, dit, families: tuple[str, ...] = tuple(SCHEDULERS)) -> Path:
    """Write, for each family, a pipeline, its trained branches, a plan and two LoRAs."""
    for family in families:
        pipe = load_pipeline(write_pipeline(folder / "new-dit", dit)) if family == "dit" else build(family)
        _round_weights(pipe)
        pipe.save_pretrained(folder / family)
        sampler = Sampler("dpm++", "lu") if family == "dit" else Sampler()
        candidate = Candidate(sampler, PLAN_STEPS, CachePolicy((1, 0), full_steps=(0, 2, 4)))
        save_plan(Plan(candidate, make_made_for(pipe, candidate, 2.0, 3.5, {})), folder / f"{family}.yaml")
        for at, transformer in enumerate(_transformers(pipe)):
            torch.manual_seed(at)
            train_a_little(add_skip_branches(transformer), 0.05)
        save_pipeline(pipe, folder / f"{family}-branches")
    return folder


def _transformers(pipe) -> list:
    parts = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [part for part in parts if part is not None]


@torch.no_grad()
def _round_weights(pipe) -> None:
    """Round weights so that a LoRA is fused and taken out again without a rounding error."""
    for transformer in _transformers(pipe):
        for parameter in transformer.parameters():
            parameter.copy_((parameter * 1024).round() / 1024)


def lora(transformer, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of one of two LoRAs, of the query of every attention."""
    generator, tensors = torch.Generator().manual_seed(ord(name)), {}
    for path, module in transformer.named_modules():
        path = path.removesuffix(".base_layer")
        if path.endswith(".to_q") and isinstance(module, torch.nn.Linear):
            down, up = (1 + ord(name) % 2, module.in_features), (module.out_features, 1 + ord(name) % 2)
            for part, shape in (("A", down), ("B", up)):
                values = torch.randint(-8, 9, shape, generator=generator) / 32
                tensors[f"transformer.{path}.lora_{part}.weight"] = values
    return tensors


class Server:
    """Pipelines that stay loaded, each in the state that its last request left.

    Args:
        folder: Of ``write_models``.
        fresh: Load the pipeline of each request anew, and change nothing more than it asks for.
    """

    def __init__(self, folder: Path, fresh: bool = False):
        self.folder, self.fresh = folder, fresh
        self.pipes: dict[str, object] = {}
        self.state: dict[str, dict] = {}

    def serve(self, request: Request) -> str:
        """Return the checksum of the samples."""
        if self.fresh:
            self.pipes.clear()
            self.state.clear()
        pipe = self._load(request.family)
        changes = [self._use_branches, self._use_cache, self._use_scheduler, self._use_lora]
        if not self.fresh:
            random.Random(request.number).shuffle(changes)
            changes.sort(key=lambda change: change == self._use_scheduler)  # a plan ends with its own scheduler
        for change in changes:
            change(pipe, request)
        if request.trouble is not None and not self.fresh:
            self._make_trouble(pipe, request)
        return checksum(self._sample(pipe, request))

    def clear(self) -> None:
        """Take everything off all pipelines."""
        for family in self.pipes:
            plain = replace(draw(0), family=family, branches=False, cache="none", scheduler=None, lora=None)
            for change in (self._use_branches, self._use_cache, self._use_scheduler, self._use_lora):
                change(self.pipes[family], plain)

    def _load(self, family: str):
        if family not in self.pipes:
            load = load_pipeline if family == "dit" else diffusers.DiffusionPipeline.from_pretrained
            pipe = self.pipes[family] = load(self.folder / family)
            pipe.set_progress_bar_config(disable=True)
            self.state[family] = {"own": pipe.scheduler, "loras": set(), "fused": False, "cache": "none"}
        return self.pipes[family]

    def _use_branches(self, pipe, request: Request) -> None:
        if not request.branches:
            unload_skip_branches(pipe)
        elif loaded_skip_branches(pipe) is None or request.number % 3 == 0:
            load_skip_branches(pipe, self.folder / f"{request.family}-branches", plan=False)

    def _use_cache(self, pipe, request: Request) -> None:
        state, policy = self.state[request.family], CACHES[request.cache]
        if request.cache == state["cache"] and request.number % 3:
            return
        if policy is None:
            disable_skip_cache(pipe)
        elif policy == "plan":
            disable_skip_cache(pipe)
            pipe.scheduler = self.state[request.family]["own"]  # whose class the plan's is
            enable_skip_cache(pipe, load_plan(self.folder / f"{request.family}.yaml"))
        else:
            enable_skip_cache(pipe, policy)
        state["cache"] = request.cache

    def _use_scheduler(self, pipe, request: Request) -> None:
        own = self.state[request.family]["own"]
        if request.cache == "plan":
            return
        if request.scheduler is None:
            pipe.scheduler = own
        elif type(pipe.scheduler).__name__ != request.scheduler or request.number % 2:
            pipe.scheduler = getattr(diffusers, request.scheduler).from_config(own.config)

    def _use_lora(self, pipe, request: Request) -> None:
        state = self.state[request.family]
        if state["fused"]:
            pipe.unfuse_lora(components=["transformer"])
            state["fused"] = False
        if request.lora is None:
            if state["loras"]:
                pipe.unload_lora_weights()
                state["loras"].clear()
            return
        name = "a" if request.lora == "fused" else request.lora
        if name not in state["loras"]:
            pipe.load_lora_weights(lora(pipe.transformer, name), adapter_name=name)
            state["loras"].add(name)
        pipe.set_adapters([name], [1.0])
        if request.lora == "fused":
            pipe.fuse_lora(components=["transformer"])
            state["fused"] = True

    def _sample(self, pipe, request: Request, on_step: Callable | None = None):
        text = request.family != "dit"
        if request.how == "generate":
            settings = self._settings(request) if text else {}
            self.state[request.family]["cache"] = "none"  # which ``generate`` takes off at its end
            policy = CACHES[request.cache]
            if policy == "plan":
                plan = load_plan(self.folder / f"{request.family}.yaml")
                settings, policy = {**settings, "scheduler": plan.sampler}, plan.policy
            elif isinstance(policy, str):
                policy = CachePolicy.level(policy, request.steps)
            made = generate(
                pipe, request.prompts, policy=policy, num_inference_steps=request.steps,
                guidance_scale=request.guidance, seed=request.number, batch_size=2, advance=on_step, **settings,
            )  # fmt: skip
            return made.images, made.latents
        generators = [torch.Generator().manual_seed(request.number + at) for at in range(request.batch)]
        call = {"num_inference_steps": request.steps, "guidance_scale": request.guidance}
        call |= {"generator": generators if request.batch > 1 else generators[0], "return_dict": False}
        if not text:
            return pipe(request.prompts, **call, output_type="pt")
        settings = self._settings(request)
        call |= settings.pop("arguments") | settings | {"output_type": "latent"}
        if request.family == "pixart-sigma":
            call["clean_caption"] = False
        if on_step is not None and request.family == "pixart-sigma":
            call["callback"] = lambda step, t, latents: on_step()
        elif on_step is not None:
            call["callback_on_step_end"] = lambda pipe, step, t, tensors: on_step() or tensors
        if request.how == "image":
            pipe = self._image_pipeline(pipe, request)
            pixels = np.random.default_rng(0).integers(0, 255, (request.size, request.size, 3), dtype=np.uint8)
            call |= {"image": [Image.fromarray(pixels)] * request.batch, "strength": 0.6}
        return pipe(request.prompts, **call)

    def _image_pipeline(self, pipe, request: Request):
        """The other pipeline of SD 3 that shares the transformer, and has a scheduler of its own."""
        state = self.state[request.family]
        if "image" not in state:
            own = type(state["own"]).from_config(state["own"].config)
            state["image"] = diffusers.StableDiffusion3Img2ImgPipeline(**{**pipe.components, "scheduler": own})
            state["image"].set_progress_bar_config(disable=True)
        return state["image"]

    def _settings(self, request: Request) -> dict:
        settings = settings_of(request.family) | {"height": request.size, "width": request.size}
        return settings | ({"num_frames": request.frames} if request.family == "wan-2.2" else {})

    def _make_trouble(self, pipe, request: Request) -> None:
        """Let the request go wrong once, and put back what a server would."""
        block = next(iter(_blocks(pipe.transformer)))
        at = iter(range(1000))

        def within(*_):
            step = next(at)
            if request.trouble == "stopped":
                pipe._interrupt = step >= 1
            elif step == 2 and request.trouble == "interrupted":
                raise KeyboardInterrupt
            elif step == 2 and request.trouble == "error in a block":
                raise RuntimeError("an error in a block")
            elif step == 2 and request.trouble == "disabled within":
                disable_skip_cache(pipe.transformer)
                self.state[request.family]["cache"] = "unknown"

        with suppress(KeyboardInterrupt, RuntimeError, SkipditError):
            if request.trouble == "too deep":
                enable_skip_cache(pipe, CachePolicy(40))
            elif request.trouble == "other steps than the plan's":
                self._sample(pipe, replace(request, steps=request.steps + 1))
            elif request.trouble == "error in a block" or request.family == "dit":
                handle = block.register_forward_pre_hook(within)
                try:
                    self._sample(pipe, request)
                finally:
                    handle.remove()
            else:
                self._sample(pipe, request, within)
        self._use_cache(pipe, request)
        self._use_scheduler(pipe, request)


def _blocks(transformer) -> Iterator:
    for name in ("transformer_blocks", "blocks"):
        yield from getattr(transformer, name, ())


def checksum(results) -> str:
    """Return the SHA-256 of all arrays and tensors among results."""
    digest = hashlib.sha256()
    for each in results:
        if each is not None:
            array = np.ascontiguousarray(each.numpy() if isinstance(each, torch.Tensor) else np.asarray(each))
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def serve_afresh(folder: Path, number: int) -> str:
    """Return what a request gives on a pipeline that is loaded for it alone."""
    return Server(folder, fresh=True).serve(draw(number))


def serve_afresh_into(folder: Path, number: int, sender) -> None:
    """Send what ``serve_afresh`` returns, from a process that has served nothing before."""
    torch.set_num_threads(1)
    sender.send(serve_afresh(folder, number))
