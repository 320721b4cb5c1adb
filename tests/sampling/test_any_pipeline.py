"""Any pipeline of diffusers, unchanged: every family through the command, and the promises on a generation's state."""

import json
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from skipdit_cli import CachePolicy, add_skip_branches, enable_skip_cache, load_pipeline, media, remove_skip_branches
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling import fitting
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pipelines.call_arguments import guidance_argument
from skipdit_cli.trunk import known_trunk
from tests.support.measurements import relative_l2, samples_in
from tests.support.tiny_pipelines import PIPELINES, build, sd3, settings_of, wan

CAT = "a red cat"
QUICK = {"num_inference_steps": 4, "seed": 3}


def trained(pipe):
    """The pipeline with branches that do something, on each of its transformers."""
    for part in ("transformer", "transformer_2"):
        model = getattr(pipe, part, None)
        if model is not None:
            torch.manual_seed(1)
            for linear in add_skip_branches(model).linears:
                torch.nn.init.normal_(linear.weight, std=0.05)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``folder(name)``: a family's pipeline folder, written once. Not to be changed."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace(".", "-")) / "model"
            build(name).save_pretrained(made[name])
        return made[name]

    return of


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_through_the_command(name, folder, skipdit, tmp_path):
    model, flags, video = folder(name), PIPELINES[name][1], "--num-frames" in PIPELINES[name][1]
    if name != "hunyuan-dit":  # which has skips of its own
        assert skipdit("convert", model, "-o", tmp_path / "skip").code == 0
        model = tmp_path / "skip"
    suffix = "gif" if video else "png"

    def sample(name, *more):
        npz = tmp_path / f"{name}.npz"
        out = ("-o", npz.with_suffix(f".{suffix}"), "--npz", npz, "--json")
        ran = skipdit("sample", "-m", model, "--prompt", CAT, "--steps", 4, *flags, *out, *more)
        assert ran.code == 0, ran.stderr
        return np.load(npz)["arr_0"], ran.json

    plain, _ = sample("plain")
    every, _ = sample("every", "--cache-layers", 1, "--cache-interval", 1)
    assert (plain == every).all() and plain.ndim == 4 + video and plain.std() > 0
    _, ran = sample("cached", "--cache-layers", 1)
    blocks = len(known_trunk(load_pipeline(model).transformer))
    calls = ran["cache"]["blocks_total"] // blocks
    assert calls in (4, 8, 12) and ran["skip_branches"] == (name != "hunyuan-dit")
    reused = 2
    assert (ran["cache"]["steps"], ran["cache"]["reused_steps"]) == (4, reused)
    assert ran["cache"]["blocks_run"] == calls * blocks - reused * calls // 4 * (blocks - 2)
    again = skipdit("sample", "--from", tmp_path / f"cached.{suffix}", "-o", tmp_path / f"again.{suffix}")
    assert again.code == 0, again.stderr
    assert (tmp_path / f"again.{suffix}").read_bytes() == (tmp_path / f"cached.{suffix}").read_bytes()


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "latte"])  # see test_text_pipeline
def test_it_is_the_pipeline_called_by_hand(name):
    pipe, settings = build(name), settings_of(name)
    made = generate(pipe, [CAT, CAT], **QUICK, **settings)
    again = generate(pipe, [CAT, CAT], **QUICK, **settings, policy=CachePolicy(1, 1), decode=False)
    assert torch.equal(made.latents, again.latents) and again.images is None
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    given = {key: value for key, value in settings.items() if key != "arguments"}
    pipe.set_progress_bar_config(disable=True)
    if "pixart" in name or name in ("sana", "allegro"):
        given["clean_caption"] = False
    out = pipe(prompt=[CAT, CAT], num_inference_steps=4, generator=generators, output_type="np", return_dict=False,
               **given, **settings["arguments"])[0]  # fmt: skip
    assert (made.images == (out * 255).round().astype(np.uint8)).all()


# The state of one generation


@pytest.mark.parametrize("name", ["wan-2.1", "cogview-4", "lumina-2"])  # a call for each branch of guidance
def test_each_branch_of_guidance_has_its_own_memory(name):
    pipe, settings = trained(build(name)), settings_of(name)
    policy = CachePolicy(1, interval=3, forecast="linear")
    alone = generate(pipe, [CAT], guidance_scale=1.0, policy=policy, **QUICK, **settings)
    guided = generate(pipe, [CAT], guidance_scale=3.0, policy=policy, **QUICK, **settings)
    assert guided.report.blocks_total == 2 * alone.report.blocks_total
    assert guided.report.blocks_run == 2 * alone.report.blocks_run
    assert guided.cache_bytes > alone.cache_bytes
    assert relative_l2(guided.latents, generate(pipe, [CAT], guidance_scale=3.0, **QUICK, **settings).latents) < 0.5


def test_the_calls_of_a_step_that_guide_in_different_ways_are_each_what_they_are_alone():
    """LTX-2 calls its transformer thrice a step: guided by a text, a block perturbed, video and sound apart."""
    pipe, settings, seen = trained(build("ltx-2")), settings_of("ltx-2"), []

    def keep(module, args, given, output):
        seen.append((given, output))

    hook = pipe.transformer.register_forward_hook(keep, with_kwargs=True)
    policy = CachePolicy(1, interval=3, forecast="linear")
    made = generate(pipe, [CAT], policy=policy, **QUICK, **settings)
    hook.remove()
    assert len(seen) == 12 and made.report.blocks_total == 12 * 6 and made.report.blocks_run == 6 * 6 + 6 * 2
    assert [given["isolate_modalities"] for given, _ in seen[:3]] == [False, False, True]
    assert [given["spatio_temporal_guidance_blocks"] for given, _ in seen[:3]] == [None, [2], None]
    cache = enable_skip_cache(pipe.transformer, policy, pipe.scheduler)
    for branch in range(3):
        pipe.scheduler.set_timesteps(4, mu=1.0)
        with torch.no_grad():
            for given, output in seen[branch::3]:
                alone = pipe.transformer(**given)
                assert all(torch.equal(one, other) for one, other in zip(alone, output))
                cache.advance()
        assert cache.trace == ["full", "reused", "reused", "full"]
    calls = [output[0][-1] for _, output in seen[3:6]]  # all reused, and none is another's
    assert min(relative_l2(calls[a], calls[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_a_video_with_sound(folder, skipdit, tmp_path):
    """At the frames a second that the model was told of, so that they go together."""
    run = ("sample", "-m", folder("ltx-2"), "--prompt", CAT, "--steps", 2, *PIPELINES["ltx-2"][1])
    pipe, settings = build("ltx-2"), settings_of("ltx-2")
    for rate, flags in {24: (), 10: ("--fps", 10)}.items():
        ran = skipdit(*run, *flags, "-o", tmp_path / f"{rate}.mp4")
        assert ran.code == 0 and "the mp4 has its sound" in ran.stdout, ran.stderr
        sound = generate(pipe, [CAT], num_inference_steps=2, fps=rate, **settings).sounds[0]
        assert sound.rate == 16000 and sound.waves.shape[1] / 16000 == pytest.approx(5 / rate, abs=0.05)
        heard, ours = samples_in(tmp_path / f"{rate}.mp4"), sound.waves.mean(0)
        assert len(heard) == pytest.approx(len(ours), abs=2048) and heard.mean() == pytest.approx(ours.mean(), rel=0.3)
        assert media.probe_video(tmp_path / f"{rate}.mp4").frames == 5
    again = skipdit("sample", "--from", tmp_path / "10.mp4", "-o", tmp_path / "again.mp4")
    assert again.code == 0, again.stderr
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "10.mp4").read_bytes()
    two = (*run, "--num-images", 2)
    assert "a gif has not" in skipdit(*run, "-o", tmp_path / "a.gif").stdout
    assert "several videos in one file is left out" in skipdit(*two, "-o", tmp_path / "two.mp4").stdout
    assert "each mp4 has its sound" in skipdit(*two, "-o", tmp_path / "two").stdout
    assert (samples_in(tmp_path / "two" / "0000.mp4") != samples_in(tmp_path / "two" / "0001.mp4")).any()
    refused = skipdit(*run, "--pipeline-arg", "frame_rate=10", "-o", tmp_path / "bad.mp4")
    assert refused.code == 2 and "give --fps" in refused.stderr


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_two_calls_in_either_order_are_one_after_the_other_alone(named, turned):
    """Each branch, called among the others, makes what it makes where it is called alone."""
    from contextlib import nullcontext

    transformer, scheduler = trained(build("wan-2.1")).transformer, build("wan-2.1").scheduler
    generator = torch.Generator().manual_seed(0)
    texts = {name: torch.randn(1, 4, 8, generator=generator) for name in ("cond", "uncond")}
    noise = [torch.randn(1, 2, 2, 4, 4, generator=generator) for _ in range(4)]

    @torch.no_grad()
    def run(*names):
        enable_skip_cache(transformer, CachePolicy(1), scheduler)
        scheduler.set_timesteps(4)
        made = {name: [] for name in names}
        for step, t in enumerate(scheduler.timesteps):
            order = names[::-1] if turned and step % 2 else names
            for name in order:
                with transformer.cache_context(name) if named else nullcontext():
                    made[name].append(transformer(noise[step], t[None], texts[name], return_dict=False)[0])
            scheduler.step(made[names[0]][-1], t, noise[step])
        return made

    alone = {name: run(name)[name] for name in texts}
    for order in (("cond", "uncond"), ("uncond", "cond")):
        together = run(*order)
        assert all(torch.equal(a, b) for name in texts for a, b in zip(together[name], alone[name]))


@pytest.mark.parametrize("name", ["sd3", "wan-2.1"])  # guidance in one batch, and in two calls
def test_guidance_switched_off_on_the_way(name):
    pipe, settings = trained(build(name)), settings_of(name)
    pipe.set_progress_bar_config(disable=True)
    cache = enable_skip_cache(pipe.transformer, CachePolicy(1), pipe.scheduler)

    def off(pipe, step, t, tensors):
        if step == 0:
            pipe._guidance_scale = 1.0
            if name == "sd3":
                tensors |= {key: tensors[key][1:] for key in ("prompt_embeds", "pooled_prompt_embeds")}
        return tensors

    given = {key: value for key, value in settings.items() if key != "arguments"} | settings["arguments"]
    tensors = ["latents", "prompt_embeds", *(["pooled_prompt_embeds"] if name == "sd3" else [])]
    call = {"num_inference_steps": 6, "guidance_scale": 3.0, "callback_on_step_end": off, **given}
    call |= {"callback_on_step_end_tensor_inputs": tensors, "output_type": "latent", "return_dict": False}
    made = pipe(CAT, generator=torch.Generator().manual_seed(0), **call)[0]
    assert torch.isfinite(made).all()
    if name == "sd3":  # another batch: step 1, which is to be reused, has nothing of that size
        assert cache.trace == ["full", "full", "full", "reused", "full", "reused"]
    else:
        assert cache.trace == ["full", "full", "reused", "full", "reused", "full", "reused"]
    assert torch.equal(pipe(CAT, generator=torch.Generator().manual_seed(0), **call)[0], made)


def test_a_start_from_an_image(skipdit, picture, tmp_path):
    """Fewer steps than were asked for: the plan is of those that run."""
    torch.manual_seed(0)
    sd3(img2img=True).save_pretrained(tmp_path / "model")
    start = ("--steps", 8, "--image", picture, *PIPELINES["sd3"][1])
    given = ("sample", "-m", tmp_path / "model", "--prompt", CAT, *start)
    for strength, steps in ((0.5, 4), (1, 8)):
        out = tmp_path / f"{strength}.png"
        ran = skipdit(*given, "--strength", strength, "--cache-layers", 1, "-o", out, "--json")
        assert ran.code == 0, ran.stderr
        assert (ran.json["cache"]["steps"], ran.json["cache"]["reused_steps"]) == (steps, steps // 2)
        assert ran.json["settings"]["image"] == str(picture)
    assert skipdit("sample", "--from", tmp_path / "0.5.png", "-o", tmp_path / "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "0.5.png").read_bytes()
    refused = [
        (("--strength", 0.1), "leaves no step of 8"),
        (("--strength", 1.5), "more than 0 and at most 1"),
        (("--image", tmp_path / "no.png"), "which is not a file"),
    ]
    for flags, says in refused:
        ran = skipdit(*given, *flags, "-o", tmp_path / "bad.png")
        assert ran.code == 2 and says in ran.stderr, ran.stderr
    torch.manual_seed(0)
    sd3().save_pretrained(tmp_path / "texts")  # its sibling takes over
    flags = ("--strength", 0.5, "--cache-layers", 1, "--npz", tmp_path / "texts.npz", "-o", tmp_path / "texts.png")
    ran = skipdit(*given[:2], tmp_path / "texts", *given[3:], *flags)
    assert ran.code == 0, ran.stderr
    assert (np.load(tmp_path / "texts.npz")["arr_0"][0] == np.asarray(Image.open(tmp_path / "0.5.png"))).all()
    ran = skipdit("sample", "-m", tmp_path / "model", "--prompt", CAT, "-o", tmp_path / "bad.png")
    assert ran.code == 2 and "no --image, but a StableDiffusion3Img2ImgPipeline starts from one" in ran.stderr


def test_a_video_of_an_image(skipdit, picture, tmp_path, monkeypatch):
    from diffusers.pipelines.wan import pipeline_wan_i2v

    torch.manual_seed(0)
    wan(image=True).save_pretrained(tmp_path / "model")
    flags = ("--image", picture, "--num-images", 2, "--cache-layers", 1, *PIPELINES["wan-2.1"][1])
    run = ("sample", "-m", tmp_path / "model", "--prompt", CAT, "--steps", 4, *flags, "-o", tmp_path / "out")
    monkeypatch.delattr(pipeline_wan_i2v, "ftfy", raising=False)  # of which diffusers asks too late
    ran = skipdit(*run)
    assert ran.code == 2 and "run pip install ftfy" in ran.stderr, ran.stderr
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    ran = skipdit(*run)
    assert ran.code == 0 and "2 videos of 5 frames" in ran.stdout, ran.stderr
    assert "2 of 4 steps reused" in ran.stdout
    one = skipdit("sample", "--from", tmp_path / "out" / "0001.mp4", "-o", tmp_path / "one.mp4")
    assert one.code == 0 and (tmp_path / "one.mp4").read_bytes() == (tmp_path / "out" / "0001.mp4").read_bytes()


def test_two_pipelines_in_one_process():
    """In the midst of the one's run another runs, of the same class and of another."""
    one, two, other = trained(build("sd3")), trained(build("sd3")), trained(build("pixart-sigma"))
    policy, settings = CachePolicy(1, forecast="linear"), settings_of("sd3")
    alone = generate(one, [CAT], policy=policy, **QUICK, **settings)
    within = []

    def others():
        if len(within) < 4:
            within.append(generate(two, ["a dog"], policy=CachePolicy(2), **QUICK, **settings).latents)
            generate(other, [CAT], policy=policy, **QUICK, **settings_of("pixart-sigma"))

    among = generate(one, [CAT], policy=policy, advance=others, **QUICK, **settings)
    assert torch.equal(among.latents, alone.latents) and among.report == alone.report
    assert all(torch.equal(latents, within[0]) for latents in within)


def lora_file(path, transformer, prefix="transformer."):
    """Of the query of every attention."""
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in transformer.named_modules():
        if name.endswith("attn.to_q"):
            tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
    save_file(tensors, path)
    return path


def test_a_lora_loaded_while_the_cache_is_on(tmp_path):
    pipe, settings = trained(build("sd3")), settings_of("sd3")
    file = lora_file(tmp_path / "lora.safetensors", pipe.transformer)
    call = {key: value for key, value in settings.items() if key != "arguments"} | settings["arguments"]
    call |= {"num_inference_steps": 6, "output_type": "latent", "return_dict": False}
    pipe.set_progress_bar_config(disable=True)
    cache = enable_skip_cache(pipe.transformer, CachePolicy(1, interval=6), pipe.scheduler)

    def load(pipe, step, t, tensors):
        if step == 2:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        return tensors

    def run(**more):
        return pipe(CAT, generator=torch.Generator().manual_seed(0), **call, **more)[0]

    before = run()
    assert cache.trace == ["full"] + ["reused"] * 5
    run(callback_on_step_end=load)
    assert cache.trace == ["full", "reused", "reused", "full", "reused", "reused"]
    after = run()
    assert cache.trace == ["full"] + ["reused"] * 5 and relative_l2(after, before) > 1e-3
    fresh = trained(build("sd3"))
    fitting.load_lora(fresh, str(file))
    enabled = enable_skip_cache(fresh.transformer, CachePolicy(1, interval=6), fresh.scheduler)
    pipe = fresh
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(run(), after) and enabled.trace == cache.trace
    pipe.unload_lora_weights()
    assert torch.equal(run(), before)


def test_a_lora_by_its_flag(folder, skipdit, tmp_path):
    model, flags = folder("sd3"), PIPELINES["sd3"][1]
    file = lora_file(tmp_path / "lora.safetensors", build("sd3").transformer)
    stray = lora_file(tmp_path / "stray.safetensors", build("sd3").transformer, prefix="unet.")
    run = ("sample", "-m", model, "--prompt", CAT, "--steps", 3, *flags)
    for name, more in {"none": (), "file": ("--lora", file), "folder": ("--lora", tmp_path / "own")}.items():
        if name == "folder":
            (tmp_path / "own").mkdir()
            shutil.copy(file, tmp_path / "own" / "pytorch_lora_weights.safetensors")
        ran = skipdit(*run, *more, "--cache-layers", 1, "-o", tmp_path / f"{name}.png")
        assert ran.code == 0, ran.stderr
    pixels = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("none", "file", "folder")}
    assert (pixels["file"] == pixels["folder"]).all() and (pixels["file"] != pixels["none"]).any()
    again = skipdit("sample", "--from", tmp_path / "file.png", "-o", tmp_path / "again.png")
    assert again.code == 0 and (tmp_path / "again.png").read_bytes() == (tmp_path / "file.png").read_bytes()
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for path, says in [
        (stray, "holds nothing for the transformer"),
        (tmp_path / "broken.safetensors", "cannot be loaded into a StableDiffusion3Pipeline"),
        (tmp_path / "none.safetensors", "does not exist"),
    ]:
        ran = skipdit(*run, "--lora", path, "-o", tmp_path / "bad.png")
        assert ran.code == 2 and says in ran.stderr, ran.stderr


def test_wan_2_2_switches_between_its_transformers():
    pipe, settings = trained(build("wan-2.2")), settings_of("wan-2.2")
    steps, calls = 10, {"transformer": [], "transformer_2": []}
    for part, seen in calls.items():
        getattr(pipe, part).register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
    made = generate(pipe, [CAT], guidance_scale=1.0, num_inference_steps=steps, policy=CachePolicy(1), **settings)
    first = len(calls["transformer"])
    assert 1 < first < steps - 1 and first + len(calls["transformer_2"]) == steps
    planned = [step % 2 == 0 or step == first for step in range(steps)]
    assert made.report.steps == steps and made.report.reused_steps == planned.count(False)
    assert (made.report.blocks_run, made.report.blocks_total) == (6 * steps - 4 * planned.count(False), 6 * steps)
    again = generate(pipe, [CAT], guidance_scale=1.0, num_inference_steps=steps, policy=CachePolicy(1), **settings)
    assert torch.equal(again.latents, made.latents)
    for part in calls:
        remove_skip_branches(getattr(pipe, part))
    assert not any("forward" in getattr(pipe, part).__dict__ for part in calls)


# The rest of the flags


def test_the_rest_of_a_call(folder, skipdit, tmp_path):
    run = ("sample", "-m", folder("flux"), "--prompt", CAT, "--steps", 2, *PIPELINES["flux"][1])
    guided = ("--negative-prompt", "dog", "--pipeline-arg", "true_cfg_scale=3", "--cache-layers", 1)
    ran = skipdit(*run, *guided, "-o", tmp_path / "a.png", "--json")
    assert ran.code == 0 and ran.json["cache"]["blocks_total"] == 2 * 2 * 6, ran.stderr
    kept = "max_sequence_length=16"
    assert json.loads(Image.open(tmp_path / "a.png").text["skipdit"])["settings"]["pipeline_arg"][0] == kept
    for flags, says in [
        (("--pipeline-arg", "true_cfg_scael=3"), "Did you mean 'true_cfg_scale'?"),
        (("--pipeline-arg", "guidance_scale=3"), "give --guidance-scale"),
        (("--pipeline-arg", "max_sequence_length=999"), "refuses a setting"),
        (("--pipeline-arg", "max_sequence_length=16"), "max_sequence_length twice"),
        (("--negative-prompt", "dog"), "guidance is off at true_cfg_scale 1.0"),
        (("--num-frames", 3), "makes images"),
        (("--scheduler", "ddim"), "follow a flow"),
    ]:
        own = run[:-2] if "999" in flags[-1].__str__() else run
        ran = skipdit(*own, *flags, "-o", tmp_path / "bad.png")
        assert ran.code == 2 and says in ran.stderr, ran.stderr
    assert not (tmp_path / "bad.png").exists()


def test_tiles_and_compilation(folder, skipdit, monkeypatch, tmp_path):
    eager = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: eager(function, backend="eager"))
    run = ("sample", "-m", folder("sd3"), "--prompt", CAT, "--steps", 4, "--cache-layers", 1, *PIPELINES["sd3"][1])
    for name, flags in {"plain": (), "other": ("--compile", "--vae-tiling")}.items():
        ran = skipdit(*run, *flags, "-o", tmp_path / f"{name}.png")
        assert ran.code == 0 and "2 of 4 steps reused" in ran.stdout, ran.stderr
    pixels = [np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("plain", "other")]
    assert abs(pixels[0] - pixels[1]).max() <= 1


def test_groups_off_the_accelerator_are_moved_where_they_run(monkeypatch):
    """On a CPU they go from memory to memory, by the same hooks."""
    from diffusers.hooks.group_offloading import ModuleGroup

    policy, settings = CachePolicy(1), settings_of("sd3")
    plain = generate(trained(build("sd3")), [CAT], policy=policy, **QUICK, **settings)
    pipe, moved = trained(build("sd3")), []
    fitting.offload(pipe, "group", torch.device("cpu"))
    onload = ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: moved.extend(group.modules) or onload(group))
    for _ in range(2):
        made = generate(pipe, [CAT], policy=policy, **QUICK, **settings)
        assert torch.equal(made.latents, plain.latents) and made.report == plain.report
        counts = [sum(block is other for other in moved) for block in pipe.transformer.transformer_blocks]
        assert counts[0] == counts[-1] == 2 * counts[1] > 0  # every other step leaves out those between
        moved.clear()


def test_offloading_that_would_undo_a_compilation_is_refused():
    cuda = torch.device("cuda")
    for kind, compiled in (("group", True), ("model", False), (None, True)):
        fitting.check_offload(kind, cuda, compiled)
    with pytest.raises(UsageError, match="leave one of the two out"):
        fitting.check_offload("model", cuda, True)


def test_what_guidance_is_called():
    from diffusers import FluxPipeline, QwenImagePipeline

    assert guidance_argument(object.__new__(FluxPipeline)) == "guidance_scale"
    assert guidance_argument(object.__new__(QwenImagePipeline)) == "true_cfg_scale"


def test_what_denoises_with_no_transformer_is_refused(skipdit, tmp_path):
    (tmp_path / "unet").mkdir()
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "unet" / "model_index.json").write_text(json.dumps(index))
    for command in (("sample", "-m"), ("convert", "-m")):
        ran = skipdit(*command, tmp_path / "unet", "-o", tmp_path / "out")
        assert ran.code == 2 and "no transformer trunk: it denoises with its unet" in ran.stderr, ran.stderr
    with pytest.raises(UsageError, match="no transformer trunk"):
        load_pipeline(tmp_path / "unet")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="nothing is missing here")
def test_a_processor_that_wants_one_more_package_says_which(folder, skipdit, tmp_path):
    """As that of the released FLUX.2."""
    model = tmp_path / "model"
    shutil.copytree(folder("flux-2"), model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "tokenizer": ["transformers", "PixtralProcessor"]}))
    ran = skipdit("sample", "-m", model, "--prompt", CAT, "-o", tmp_path / "out.png")
    assert ran.code == 2 and "needs torchvision; run pip install torchvision." in ran.stderr, ran.stderr
