"""How the cache follows schedulers within pipelines' own habits, and in loops without one."""

import copy
import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import diffusers
import pytest
import torch
from PIL import Image

from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache
from skipdit_cli.errors import UsageError
from tests.support.pipeline_parts import flow, t5, wan_vae
from tests.support.tiny_transformers import tiny

UNIPC = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
SMALL = dict(num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=6)


@pytest.fixture
def model():
    return tiny("WanTransformer3DModel")


def noise(model, x, t, text, name=None):
    with torch.no_grad(), model.cache_context(name) if name else nullcontext():
        return model(x, t.expand(1), text, return_dict=False)[0]


def loop(model, scheduler, steps=8, names=(None,), timesteps=slice(None), set_timesteps=True, text=None):
    """A sampling loop; a call a step, or one for each of the context names."""
    if set_timesteps:
        scheduler.set_timesteps(steps)
    x = torch.randn(1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = [torch.randn(1, 5, 6) for _ in names] if text is None else [text] * len(names)
    for t in scheduler.timesteps[timesteps]:
        predicted = [noise(model, x, t, text, name) for text, name in zip(texts, names)]
        x = scheduler.step(predicted[0], t, x, return_dict=False)[0]
    return x


def kinds(cache):
    return "".join(kind[0] for kind in cache.trace)


# A step ends where the scheduler steps and the transformer ran since


@pytest.mark.parametrize("interval, expected", [(1, "ffffffff"), (2, "frfrfrfr"), (3, "frrfrrfr")])
def test_a_scheduler_that_steps_twice_a_step(model, interval, expected):
    """As Cosmos 1 does, for x0 and then from it."""
    scheduler = diffusers.EDMEulerScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=interval), scheduler)
    scheduler.set_timesteps(8)
    x, text = torch.randn(1, 2, 1, 8, 8), torch.randn(1, 5, 6)
    for t in scheduler.timesteps:
        predicted = noise(model, scheduler.scale_model_input(x, t), t, text)
        x0 = scheduler.step(predicted, t, x, return_dict=False)[1]
        scheduler._step_index -= 1
        x = scheduler.step(x0, t, x, return_dict=False, pred_original_sample=x0)[0]
    assert kinds(cache) == expected and cache.slots == {}
    assert str(cache.report()).startswith(f"{expected.count('r')} of 8 steps reused")


def test_steps_without_the_transformer_are_none(model):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(8)
    x, text, predicted = torch.randn(1, 2, 1, 8, 8), torch.randn(1, 5, 6), None
    for place, t in enumerate(scheduler.timesteps):
        predicted = noise(model, x, t, text) if place % 2 == 0 else predicted
        x = scheduler.step(predicted, t, x).prev_sample
    assert kinds(cache) == "frfr"
    assert (cache.report().steps, cache.report().reused_steps) == (4, 2)


@pytest.mark.parametrize("interval, expected", [(1, "ffffffff"), (2, "frfrfrfr"), (3, "frrfrrfr")])
@pytest.mark.parametrize("timesteps", [slice(None), slice(3, None), slice(None, 5), slice(2, 7)])
def test_a_second_loop_after_one_set_timesteps_is_a_generation_of_its_own(model, interval, expected, timesteps):
    scheduler = diffusers.DDIMScheduler()
    cache = enable_skip_cache(model, CachePolicy(1, interval=interval), scheduler)
    first = loop(model, scheduler, timesteps=timesteps, text=torch.ones(1, 5, 6))
    again = loop(model, scheduler, timesteps=timesteps, text=torch.ones(1, 5, 6), set_timesteps=False)
    once = expected[: len(range(8)[timesteps])]
    assert kinds(cache) == once * 2 and torch.equal(first, again)
    assert (cache.report().steps, cache.report().reused_steps) == (2 * len(once), 2 * once.count("r"))


def test_a_loop_whose_step_index_was_put_back_is_a_generation_of_its_own(model):
    scheduler = diffusers.EulerDiscreteScheduler()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    for steps in (3, 8):
        loop(model, scheduler, timesteps=slice(steps), set_timesteps=steps == 3, names=["cond"])
        scheduler._step_index = None
    assert kinds(cache) == "frf" + "frfrfrfr"


# The plan is laid over the steps that are run


@pytest.mark.parametrize("kind", ["UniPC", "flow", "DDIM"])
@pytest.mark.parametrize("policy", [CachePolicy(1, full_steps=3), CachePolicy(1, window=(800, 300))])
def test_a_loop_that_begins_in_the_middle_without_saying_so(model, kind, policy):
    made = {"UniPC": diffusers.UniPCMultistepScheduler(**UNIPC), "flow": flow(), "DDIM": diffusers.DDIMScheduler()}
    scheduler = made[kind]
    cache = enable_skip_cache(model, policy, scheduler)
    for start in (5, 0, 3):
        loop(model, scheduler, steps=10, names=["cond"], timesteps=slice(start, None))
        planned = policy.plan(scheduler.timesteps[start:].tolist())
        assert kinds(cache) == "".join("rf"[full] for full in planned)
        assert cache.slots == {}


@pytest.mark.parametrize("forecast", ["linear", "taylor2"])
def test_the_first_step_is_remembered_at_its_own_timestep(model, forecast):
    """Whether the scheduler said where it begins, or not."""
    made, text = [], torch.ones(1, 5, 6)
    for told in (True, False):
        scheduler = flow()
        enable_skip_cache(model, CachePolicy(1, interval=3, forecast=forecast), scheduler)
        scheduler.set_timesteps(10)
        if told:
            scheduler.set_begin_index(3)
        made.append(loop(model, scheduler, timesteps=slice(3, None), text=text, set_timesteps=False))
    assert torch.equal(*made)


def test_a_schedule_for_more_steps_than_are_run_is_refused(model):
    scheduler = flow()
    enable_skip_cache(model, CachePolicy(1, full_steps=(0, 7)), scheduler)
    with pytest.raises(UsageError, match="another --num-inference-steps"):
        loop(model, scheduler, steps=10, timesteps=slice(5, None))


def test_the_last_timestep_of_some_schedulers_is_no_step(model):
    """SCM's list (Sana Sprint) ends where it arrives; PNDM's is as long and all of it is run."""
    for scheduler, steps in ((diffusers.SCMScheduler(), 6), (diffusers.PNDMScheduler(skip_prk_steps=True), 7)):
        options = {"intermediate_timesteps": None} if steps == 6 else {}
        scheduler.set_timesteps(6, **options)
        cache = enable_skip_cache(model, CachePolicy(1, full_steps=3), scheduler)
        loop(model, scheduler, timesteps=slice(steps), set_timesteps=False)
        assert len(scheduler.timesteps) == 7 and len(cache.plan) == steps and cache.slots == {}
        assert kinds(cache).count("f") == 3 and kinds(cache)[-1] == "f"


# Copies of the scheduler, and others in its place


@pytest.mark.parametrize("names", [(None,), ("cond",), ("cond", "uncond")])
def test_a_copy_of_the_scheduler_is_followed(model, names):
    scheduler = flow()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    expected = "".join(kind * len(names) for kind in "frfrfr")
    for steps, followed in ((6, scheduler), (6, copy.deepcopy(scheduler)), (4, copy.deepcopy(scheduler))):
        loop(model, followed, steps=steps, names=names)
        assert kinds(cache) == expected[: steps * len(names)]
        assert (cache.report().steps, cache.report().reused_steps) == (steps, steps // 2)
    disable_skip_cache(model)
    copied = copy.deepcopy(followed)
    loop(model, followed), loop(model, copied)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("names", [(None,), ("cond",), ("cond", "uncond")])
@pytest.mark.parametrize("ran", ["never", "half", "whole"])
def test_a_scheduler_that_nothing_tells_of_is_an_error(model, names, ran):
    """In a loop that no pipeline runs: exchanged, or copied before the cache was enabled."""
    scheduler = flow()
    other, copied = type(scheduler).from_config(scheduler.config), copy.deepcopy(scheduler)
    for used in (other, copied):
        enable_skip_cache(model, CachePolicy(1), scheduler)
        if ran != "never":
            loop(model, scheduler, names=names, timesteps=slice(4 if ran == "half" else None))
        with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler; was the scheduler replaced"):
            loop(model, used, names=names)
        enable_skip_cache(model, CachePolicy(1), used)
        loop(model, used, names=names)


def test_texts_that_are_made_anew_for_each_call_are_no_excuse(model):
    enable_skip_cache(model, CachePolicy(1), flow())
    scheduler = flow()
    scheduler.set_timesteps(10)
    with pytest.raises(UsageError, match="called 3 times within one step"):
        for t in scheduler.timesteps:
            noise(model, torch.randn(1, 2, 1, 8, 8), t, torch.ones(1, 5, 6))


def wan(scheduler, kind="WanPipeline", **parts):
    parts = dict(transformer=tiny("WanTransformer3DModel", text_dim=8), vae=wan_vae()) | parts
    pipe = getattr(diffusers, kind)(tokenizer=None, text_encoder=None, scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, **settings):
    torch.manual_seed(0)
    texts = dict(prompt_embeds=torch.randn(1, 5, 8), negative_prompt_embeds=torch.randn(1, 5, 8))
    size = dict(height=16, width=16, num_frames=5, num_inference_steps=6, output_type="latent")
    return pipe(**texts, **size, generator=torch.Generator().manual_seed(0), **settings)[0]


@pytest.mark.parametrize("ran", ["never", "broken", "left", "whole"])
def test_the_scheduler_that_a_pipeline_was_given_after_is_followed(ran):
    pipe = wan(flow())
    bound = pipe.scheduler
    cache = enable_skip_cache(pipe.transformer, CachePolicy(1), bound)

    def breaks(*_):
        if len(cache.trace) > 6:
            raise KeyboardInterrupt
        return {}

    if ran == "whole":
        call(pipe)
    elif ran == "left":
        with pytest.raises(KeyboardInterrupt):
            call(pipe, callback_on_step_end=breaks)
    elif ran == "broken":
        handle = pipe.transformer.blocks[0].register_forward_hook(lambda *_: breaks() or None)
        with pytest.raises(KeyboardInterrupt):
            call(pipe)
        handle.remove()
    cache.report()
    pipe.scheduler = diffusers.UniPCMultistepScheduler(**UNIPC)
    made = call(pipe)
    assert kinds(cache)[-12:] == "ffrr" * 3
    assert cache.scheduler is pipe.scheduler and "step" not in vars(bound)
    again = wan(diffusers.UniPCMultistepScheduler(**UNIPC), transformer=pipe.transformer)
    cache = enable_skip_cache(again.transformer, CachePolicy(1), again.scheduler)
    assert torch.equal(call(again), made) and kinds(cache) == "ffrr" * 3
    disable_skip_cache(again.transformer)
    assert not {"step", "set_timesteps"} & set(vars(again.scheduler))


def test_two_pipelines_of_one_transformer_take_turns():
    first = wan(flow())
    second = wan(diffusers.UniPCMultistepScheduler(**UNIPC), transformer=first.transformer)
    cache = enable_skip_cache(first.transformer, CachePolicy(1), first.scheduler)
    for pipe in (first, second, second, first):
        call(pipe)
        assert kinds(cache) == "ffrr" * 3
        assert str(cache.report()) == "3 of 6 steps reused, 48 of 72 blocks run"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("threads", [False, True])
def test_a_copy_of_the_scheduler_in_the_pipeline_of_another_model_is_not_ours(cached, threads):
    """As a server gives each thread a pipeline: in the midst of the one's run the other runs."""
    first = wan(flow())
    cache = enable_skip_cache(first.transformer, CachePolicy(1), first.scheduler)
    other = wan(copy.deepcopy(first.scheduler), transformer=copy.deepcopy(first.transformer))
    if not cached:
        disable_skip_cache(other.transformer)
    alone, others = call(first), call(other)
    within = []

    def run_other(pipe, step, t, tensors):
        if step == 2 and threads:
            with ThreadPoolExecutor(1) as pool:
                within.append(pool.submit(call, other).result())
        elif step == 2:
            within.append(call(other))
        return tensors

    assert torch.equal(call(first, callback_on_step_end=run_other), alone)
    assert torch.equal(within[0], others) and kinds(cache) == "ffrr" * 3


def test_a_copy_of_the_scheduler_that_another_cache_takes_is_not_ours(model):
    scheduler = diffusers.DDIMScheduler()
    cache, other = enable_skip_cache(model, CachePolicy(1), scheduler), copy.deepcopy(model)
    disable_skip_cache(other)
    copied = copy.deepcopy(scheduler)
    enable_skip_cache(other, CachePolicy(1), copied)
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        x = torch.zeros(1, 2, 1, 8, 8)
        loop(other, copied, steps=3)
        scheduler.step(noise(model, x, t, torch.ones(1, 5, 6)), t, x)
    assert kinds(cache) == "frfr"


def test_a_scheduler_keeps_no_model_alive():
    scheduler, model = flow(), tiny("WanTransformer3DModel")
    enable_skip_cache(model, CachePolicy(1), scheduler)
    gone = weakref.ref(model)
    copied = copy.deepcopy(scheduler)
    del model
    gc.collect()
    assert gone() is None
    loop(tiny("WanTransformer3DModel"), scheduler), loop(tiny("WanTransformer3DModel"), copied)


# Calls of one branch of guidance


def test_several_calls_of_one_name_within_a_step_are_each_what_they_are_alone(model):
    """Tiles, say."""
    scheduler = flow()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(6)
    tiles, text = torch.randn(3, 1, 2, 1, 8, 8), torch.ones(1, 5, 6)
    made = []
    for t in scheduler.timesteps:
        made.append([noise(model, tile, t, text, "cond") for tile in tiles])
        scheduler.step(tiles[0], t, tiles[0])
    assert kinds(cache) == "fffrrr" * 3
    for place, tile in enumerate(tiles):
        scheduler.set_timesteps(6)
        for step, t in enumerate(scheduler.timesteps):
            assert torch.equal(noise(model, tile, t, text, "cond"), made[step][place])
            scheduler.step(tile, t, tile)


@pytest.mark.parametrize("interval, expected", [(2, "frfrfrfr"), (3, "frrfrrfr"), (4, "frrrfrrr")])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_without_a_scheduler_each_branch_of_guidance_is_counted_alone(model, interval, expected, named, branches):
    cache = enable_skip_cache(model, CachePolicy(1, interval=interval), None)
    texts = torch.randn(branches, 1, 5, 6)
    for step in range(8):
        order = range(branches) if step % 2 else reversed(range(branches))
        for branch in order:
            t = torch.tensor([1000 - 100 * step])
            noise(model, torch.randn(1, 2, 1, 8, 8), t, texts[branch], f"branch {branch}" if named else None)
    assert kinds(cache) == "".join(kind * branches for kind in expected)
    assert (cache.report().steps, cache.report().reused_steps) == (8, expected.count("r"))


def test_without_a_scheduler_the_trace_is_bounded_and_the_counts_go_on(model, monkeypatch):
    monkeypatch.setattr("skipdit_cli.cache.generation.report.MOST_TRACED", 6)
    cache = enable_skip_cache(model, CachePolicy(1, interval=2), None)
    texts = torch.randn(2, 1, 5, 6)
    for step in range(1, 21):
        for text in texts:
            noise(model, torch.randn(1, 2, 1, 8, 8), torch.tensor([step]), text)
        assert len(cache.trace) <= 6 + len(texts)
        assert (cache.report().steps, cache.report().reused_steps) == (step, step // 2)


def test_without_a_scheduler_a_list_of_full_steps_and_a_window_are_of_each_branch(model):
    times = (980, 890, 700, 640, 330, 90, 15, 5)
    for policy, expected in (
        (CachePolicy(1, full_steps=(0, 3)), "frrfrrrr"),
        (CachePolicy(1, window=(1000, 20)), "frfrfrff"),
    ):
        cache = enable_skip_cache(model, policy)
        texts = torch.randn(2, 1, 5, 6)
        for run in (1, 2) if policy.window else (1,):  # past its end a window's next run begins anew
            for t in times:
                for text in texts:
                    noise(model, torch.randn(1, 2, 1, 8, 8), torch.tensor([t]), text)
            assert kinds(cache) == "".join(kind * 2 for kind in expected) * run


# The report


def test_the_report_is_of_all_segments_and_stays_after_them(model):
    """As WanAnimate and FramePack are called: set_timesteps once a segment, and perhaps once more."""
    scheduler = flow()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    for segments in (3, 2):
        for _ in range(segments):
            loop(model, scheduler, steps=6)
        scheduler.set_timesteps(6)
        for _ in range(2):
            assert (
                str(cache.report())
                == f"{3 * segments} of {6 * segments} steps reused, {24 * segments} of {36 * segments} blocks run"
            )
        assert kinds(cache) == "frfrfr"
    cache.reset()
    assert str(cache.report()) == "0 of 0 steps reused, 0 of 0 blocks run" and cache.trace == []


@pytest.mark.parametrize("left_by", ["the next run", "disabling"])
def test_a_loop_that_ends_early_and_reused_nothing_is_a_warning(model, left_by):
    scheduler = flow()
    enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(8)
    for size, t in zip((8, 16, 8, 16), scheduler.timesteps):
        x = torch.randn(1, 2, 1, size, size)
        noise(model, x, t, torch.ones(1, 5, 6), "cond")
        scheduler.step(x, t, x)
    with pytest.warns(UserWarning, match="reused none of 4 steps"):
        disable_skip_cache(model) if left_by == "disabling" else scheduler.set_timesteps(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disable_skip_cache(model)


def test_a_loop_under_gradients_that_reuses_nothing_is_a_warning(model):
    scheduler = flow()
    cache = enable_skip_cache(model, CachePolicy(1), scheduler)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 2, 1, 8, 8)
    with pytest.warns(UserWarning, match="reused none of 4 steps"):
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(1), torch.ones(1, 5, 6)).sample, t, x).prev_sample
    assert kinds(cache) == "ffff"


# Pipelines of diffusers


def texts():
    return dict(prompt_embeds=torch.randn(1, 5, 8), negative_prompt_embeds=torch.randn(1, 5, 8))


def cosmos():
    class Guard(torch.nn.Module):
        config, device, dtype = {}, torch.device("cpu"), torch.float32

    sizes = dict(num_attention_heads=2, attention_head_dim=12, num_layers=6, mlp_ratio=2, adaln_lora_dim=4)
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, text_embed_dim=8, max_size=(4, 32, 32), concat_padding_mask=False, **sizes
    )
    scheduler = diffusers.EDMEulerScheduler(sigma_max=80, sigma_data=0.5)
    pipe = diffusers.CosmosTextToWorldPipeline(t5()[1], None, transformer.eval(), None, scheduler, Guard())
    size = dict(height=64, width=64, num_frames=9, latents=torch.randn(1, 4, 2, 8, 8))
    return pipe, dict(size, num_inference_steps=6, **texts())


def wan_video_to_video():
    pipe = wan(diffusers.UniPCMultistepScheduler(**UNIPC), "WanVideoToVideoPipeline")
    size = dict(video=[Image.new("RGB", (16, 16))] * 5, height=16, width=16)
    return pipe, dict(size, num_inference_steps=12, strength=0.5, **texts())


def cogvideox_video_to_video():
    kinds = dict(down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2)
    sizes = dict(block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1, temporal_compression_ratio=2)
    decoder = diffusers.AutoencoderKLCogVideoX(latent_channels=2, sample_height=16, sample_width=16, **kinds, **sizes)
    transformer = tiny(
        "CogVideoXTransformer3DModel", text_embed_dim=8, sample_frames=5, temporal_compression_ratio=2,
        use_rotary_positional_embeddings=True, attention_head_dim=16,
    )  # fmt: skip
    parts = (decoder.eval(), transformer, diffusers.CogVideoXDPMScheduler())
    pipe = diffusers.CogVideoXVideoToVideoPipeline(None, None, *parts)
    size = dict(video=[Image.new("RGB", (16, 16))] * 5, height=16, width=16)
    return pipe, dict(size, num_inference_steps=12, strength=0.5, **texts())


def sana_sprint():
    transformer = tiny("SanaTransformer2DModel", caption_channels=8, guidance_embeds=True)
    pipe = diffusers.SanaSprintPipeline(None, None, None, transformer, diffusers.SCMScheduler())
    size = dict(height=256, width=256, use_resolution_binning=False, intermediate_timesteps=None)
    text = dict(prompt_embeds=torch.randn(1, 5, 8), prompt_attention_mask=torch.ones(1, 5))
    return pipe, dict(size, num_inference_steps=6, **text)


def skyreels(**more):
    transformer = diffusers.SkyReelsV2Transformer3DModel(in_channels=2, out_channels=2, rope_max_seq_len=64, **SMALL)
    parts = (transformer.eval(), wan_vae(), diffusers.UniPCMultistepScheduler(**UNIPC))
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(None, None, *parts)
    size = dict(prompt=None, height=16, width=16, num_frames=9, base_num_frames=9)
    return pipe, dict(size, num_inference_steps=6, **texts()) | more


def wan_animate():
    face = dict(motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8)
    face |= dict(motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=8, face_encoder_num_heads=2)
    transformer = diffusers.WanAnimateTransformer3DModel(
        in_channels=8, latent_channels=2, out_channels=2, image_dim=4, rope_max_seq_len=64,
        inject_face_latents_blocks=2, **face, **SMALL,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLWan(
        z_dim=2, base_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=[0.1] * 2, latents_std=[1.5] * 2, scale_factor_temporal=4, scale_factor_spatial=4,
    )  # fmt: skip
    parts = (decoder.eval(), diffusers.UniPCMultistepScheduler(**UNIPC), None, None, transformer.eval())
    pipe = diffusers.WanAnimatePipeline(None, None, *parts)
    pipe.encode_image = lambda image, device: torch.ones(1, 3, 4)
    picture = Image.new("RGB", (16, 16))
    size = dict(image=picture, pose_video=[picture] * 17, face_video=[picture] * 17, height=16, width=16)
    return pipe, dict(size, segment_frame_length=9, num_inference_steps=6, guidance_scale=5.0, **texts())


def helios():
    transformer = diffusers.HeliosTransformer3DModel(in_channels=2, out_channels=2, rope_dim=(4, 4, 4), **SMALL)
    scheduler = diffusers.HeliosScheduler(stages=2, stage_range=[0, 0.5, 1])
    pipe = diffusers.HeliosPyramidPipeline(None, None, wan_vae(), scheduler, transformer.eval())
    noise = torch.Generator().manual_seed(1)
    pipe.sample_block_noise = lambda *args: torch.randn(args[:5], generator=noise.manual_seed(1))
    size = dict(prompt=None, height=32, width=32, num_frames=9, num_latent_frames_per_chunk=3)
    return pipe, dict(size, pyramid_num_inference_steps_list=[6, 6], history_sizes=[4, 2, 1], **texts())


PIPELINES = {  # how it is made, then calls a step, steps of a generation, generations
    "cosmos steps twice": (cosmos, 2, 6, 1),
    "wan video to video": (wan_video_to_video, 2, 6, 1),
    "cogvideox video to video": (cogvideox_video_to_video, 1, 6, 1),
    "sana sprint": (sana_sprint, 1, 6, 1),
    "skyreels copies": (skyreels, 2, 6, 1),
    "skyreels long": (lambda: skyreels(base_num_frames=5, overlap_history=3, addnoise_condition=20), 2, 6, 3),
    "skyreels asynchronous": (lambda: skyreels(ar_step=3, causal_block_size=1), 2, 6, 3),
    "wan animate": (wan_animate, 2, 6, 2),
    "helios": (helios, 2, 6, 4),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_in_the_habits_of_a_pipeline(name):
    make, calls, steps, generations = PIPELINES[name]
    torch.manual_seed(0)
    pipe, arguments = make()
    pipe.set_progress_bar_config(disable=True)

    def run():
        torch.manual_seed(1)
        made = pipe(**arguments, output_type="latent", generator=torch.Generator().manual_seed(0))
        return torch.as_tensor(made[0]) if name != "wan animate" else None  # which hands out no latents

    plain = run()
    cache = enable_skip_cache(pipe.transformer, CachePolicy(1, interval=1), pipe.scheduler)
    made = run()
    assert plain is None or torch.equal(made, plain)
    for policy, full in (
        (CachePolicy(1), 3),
        (CachePolicy(1, full_steps=(0, 3, 4)), 3),
        (CachePolicy(1, full_steps=4), 4),
    ):
        cache = enable_skip_cache(pipe.transformer, policy, pipe.scheduler)
        run()
        planned = "".join("rf"[kind] * calls for kind in policy.plan(range(steps)))
        assert kinds(cache) in (planned, planned * generations)
        counted = (cache.report().steps, cache.report().reused_steps)
        assert counted == (steps * generations, (steps - full) * generations)
        assert cache.slots == {}
