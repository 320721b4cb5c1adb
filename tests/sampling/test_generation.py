"""The sampling loop: the official code's DDIM and DDPM runs, guidance, seeds, schedulers."""

import diffusers
import pytest
import torch

from skipdit_cli import CachePolicy, add_skip_branches, disable_skip_cache, enable_skip_cache, load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import check_labels
from skipdit_cli.sampling.by_class import denoise
from skipdit_cli.sampling.fitting import compile_transformers
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import SCHEDULERS, RespacedDDIMScheduler, make_scheduler
from tests.support.measurements import relative_l2

TOLERANCE = 1e-4


def official_run(pipe, case, name, steps, guidance_scale=1.0, policy=None):
    """The final latents of one official run: its noise, its labels, three guided channels."""
    scheduler = make_scheduler(name, pipe)
    scheduler.set_timesteps(steps)
    noise = case.io.get("ddpm_cfg4_noise" if guidance_scale > 1 else "ddpm_noise")
    if name == "ddpm":  # the official loop's own noise; of its doubled batch the first half
        given = iter(noise[:, : len(case.io["x_T"])])
        step = scheduler.step

        def with_official_noise(output, t, x, **arguments):
            arguments.pop("generator", None)
            mean = diffusers.schedulers.scheduling_ddpm.randn_tensor
            diffusers.schedulers.scheduling_ddpm.randn_tensor = lambda *_, **__: next(given)
            try:
                return step(output, t, x, **arguments)
            finally:
                diffusers.schedulers.scheduling_ddpm.randn_tensor = mean

        scheduler.step = with_official_noise
    if policy is not None:
        enable_skip_cache(pipe.transformer, policy, scheduler)
    try:
        return denoise(pipe.transformer, scheduler, case.io["x_T"], case.io["sample_y"], guidance_scale=guidance_scale)
    finally:
        disable_skip_cache(pipe.transformer)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_official_runs_of_dit(name, guidance_scale, golden, golden_pipeline):
    case, pipe = golden("dit"), load_pipeline(golden_pipeline("dit"))
    key = f"{name}10{'_cfg4' if guidance_scale > 1 else ''}_final"
    final = official_run(pipe, case, name, 10, guidance_scale)
    assert relative_l2(final, case.io[key][: len(final)]) < TOLERANCE


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_official_runs_of_skip_dit(guidance_scale, golden, golden_pipeline):
    case, pipe = golden("dit_skip"), load_pipeline(golden_pipeline("dit_skip"))
    key = f"ddim20{'_cfg4' if guidance_scale > 1 else ''}_final"
    final = official_run(pipe, case, "ddim", 20, guidance_scale)
    assert relative_l2(final, case.io[key][: len(final)]) < TOLERANCE


@pytest.mark.parametrize("interval", [2, 3])
def test_official_cached_runs(interval, golden, golden_pipeline):
    case, pipe = golden("dit_skip_cache"), load_pipeline(golden_pipeline("dit_skip_cache"))
    uncached = official_run(pipe, case, "ddim", 20)
    assert relative_l2(uncached, case.io["ddim20_uncached_final"]) < TOLERANCE
    cached = official_run(
        pipe, case, "ddim", 20, policy=CachePolicy(4, interval=interval, window=(1000, 20), forecast="reuse")
    )
    expected = case.io[f"ddim20_cache{interval}_final"]
    assert relative_l2(cached, expected) < TOLERANCE
    assert relative_l2(cached - uncached, expected - case.io["ddim20_uncached_final"]) < 0.02


def test_the_official_timesteps(golden, golden_pipeline):
    pipe = load_pipeline(golden_pipeline("dit_skip"))
    scheduler = make_scheduler(None, pipe)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == golden("dit_skip").facts["ddim20"]["timesteps"]


def test_respaced_ddim_is_diffusers_where_spacing_is_uniform():
    x, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for prediction in ("epsilon", "v_prediction", "sample"):
        ours = RespacedDDIMScheduler(prediction_type=prediction, timestep_spacing="leading", clip_sample=True)
        theirs = diffusers.DDIMScheduler.from_config(ours.config)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(10)
        for t in ours.timesteps:
            moved, x0 = ours.step(noise, t, x, return_dict=False)
            expected = theirs.step(noise, t, x)
            assert torch.allclose(moved, expected.prev_sample, atol=1e-6)
            assert torch.allclose(x0, expected.pred_original_sample, atol=1e-6)


@pytest.fixture
def pipe(tiny_pipeline):
    return load_pipeline(tiny_pipeline())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs_with_guidance_and_cache(pipe, name):
    made = generate(pipe, [1, 2], num_inference_steps=6, scheduler=name, policy=CachePolicy(1))
    assert made.images.shape == (2, 8, 8, 3) and torch.isfinite(made.latents).all()
    assert made.report.reused_steps > 0


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_an_image_depends_on_its_seed_alone(pipe, name):
    settings = {"num_inference_steps": 5, "scheduler": name}
    together = generate(pipe, [1, 2, 3], seed=7, **settings).latents
    apart = generate(pipe, [1, 2, 3], seed=7, batch_size=2, **settings).latents
    alone = generate(pipe, [3], seed=9, **settings).latents
    assert relative_l2(together, apart) < 1e-5
    assert relative_l2(together[2:], alone) < 1e-5
    assert relative_l2(together[0], together[1]) > 0.1


def test_guidance_of_three_channels(tiny_dit, tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline(in_channels=4, out_channels=8))
    settings = {"num_inference_steps": 1, "guidance_scale": 4.0}
    plain = generate(pipe, [1], **{**settings, "guidance_scale": 1.0}).latents
    three = generate(pipe, [1], cfg_channels="3", **settings).latents
    every = generate(pipe, [1], cfg_channels="all", **settings).latents
    assert torch.allclose(three[:, 3], plain[:, 3]) and torch.allclose(three[:, :3], every[:, :3])
    assert not torch.allclose(every[:, 3], plain[:, 3])


def test_ddpm_uses_a_learned_variance_where_there_is_one(tiny_pipeline):
    learned = make_scheduler("ddpm", load_pipeline(tiny_pipeline("learned")))
    fixed = make_scheduler("ddpm", load_pipeline(tiny_pipeline("fixed", out_channels=1)))
    assert (learned.config.variance_type, fixed.config.variance_type) == ("learned_range", "fixed_small")


def test_latents_go_through_the_vae(tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline(in_channels=4, out_channels=8))
    torch.manual_seed(0)
    pipe.vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    made = generate(pipe, [1, 2, 3], num_inference_steps=2, batch_size=2)
    assert made.images.shape == (3, 16, 16, 3)
    with torch.no_grad():
        expected = pipe.vae.decode(made.latents[:1] / pipe.vae.config.scaling_factor).sample
    assert (
        abs(made.images[0].astype(float) - (127.5 * expected[0].permute(1, 2, 0).numpy() + 128).clip(0, 255)).max()
        <= 1
    )


def test_the_cache_is_off_again_after_a_run(pipe):
    before = generate(pipe, [1], num_inference_steps=4).latents
    generate(pipe, [1], num_inference_steps=4, policy=CachePolicy(1, interval=4))
    assert torch.equal(generate(pipe, [1], num_inference_steps=4).latents, before)
    with pytest.raises(UsageError):
        generate(pipe, [1], num_inference_steps=4, policy=CachePolicy(1, full_steps=9))
    assert torch.equal(generate(pipe, [1], num_inference_steps=4).latents, before)


def test_bfloat16_on_a_cpu_without_it_computes_in_float32(tiny_pipeline, monkeypatch):
    from skipdit_cli.sampling import device

    folder = tiny_pipeline()
    exact = generate(load_pipeline(folder), [1], num_inference_steps=3).latents
    monkeypatch.setattr(device, "computes_wide", lambda transformer: True)
    pipe = device.move(load_pipeline(folder, dtype=torch.bfloat16), torch.device("cpu"))
    wide = generate(pipe, [1], num_inference_steps=3).latents
    assert relative_l2(wide, exact) < 0.1
    linear = pipe.transformer.proj_out_1
    x = torch.randn(3, 16).bfloat16()
    expected = (x.float() @ linear.weight.float().T + linear.bias.float()).bfloat16()
    assert torch.equal(linear(x), expected)


def test_from_command_to_block_in_six_frames(tiny_pipeline, skipdit, tmp_path, monkeypatch):
    """The way of a tensor from ``skipdit sample`` to a block's forward, in frames of our own code, with branches and
    the cache."""
    import functools
    import traceback

    from diffusers.models.attention import BasicTransformerBlock

    folder, seen, forward = tiny_pipeline(), [], BasicTransformerBlock.forward
    assert skipdit("convert", folder, "-o", tmp_path / "converted").code == 0

    @functools.wraps(forward)
    def look(self, *arguments, **named):
        frames = [f for f in traceback.extract_stack() if "/skipdit_cli/" in f.filename]
        names = [f.filename.split("/skipdit_cli/")[1] + ":" + f.name for f in frames]
        seen.append([name for name in names if not name.startswith(("app.py", "commands/flags.py"))])
        return forward(self, *arguments, **named)

    monkeypatch.setattr(BasicTransformerBlock, "forward", look)
    ran = skipdit("sample", "-m", tmp_path / "converted", "--steps", 1, "--cache-layers", 1, "-o", tmp_path / "a.png")
    assert ran.code == 0, ran.stderr
    assert seen[0] == [
        "commands/sample.py:sample",
        "sampling/generate.py:generate_batches",
        "sampling/by_class.py:run",
        "cache/enable.py:__call__",
        "trunk/forward_state.py:__call__",
        "trunk/block.py:__call__",
    ]


def test_a_compiled_pipeline_has_a_graph_of_a_full_and_one_of_a_reused_step(tiny_pipeline):
    pipe, graphs = load_pipeline(tiny_pipeline(num_layers=3)), []
    add_skip_branches(pipe.transformer)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "policy": CachePolicy(1)}
    plain = generate(pipe, [1], **settings)
    compile_transformers([pipe], backend)
    for _ in range(2):  # the cache is put on and taken off in each
        made = generate(pipe, [1], **settings)
        assert relative_l2(made.latents, plain.latents) < 1e-5 and made.report == plain.report
    assert len(graphs) == 2


def test_an_unknown_setting_is_a_type_error(pipe):
    with pytest.raises(TypeError, match="inference_steps"):
        generate(pipe, [1], inference_steps=3)


def test_labels_are_checked():
    for labels in ([], [10], [-1]):
        with pytest.raises(UsageError, match="0..9"):
            check_labels(labels, 10)


@pytest.mark.parametrize("name", ["dpm++", "ddim", "euler", None])
def test_a_learned_variance_stays_with_ddpm(name, tiny_dit):
    """diffusers' DPM-Solver keeps three channels of the output where its config says that the variance is learned."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    pipe = diffusers.DiTPipeline(tiny_dit(in_channels=4, out_channels=8), vae=None, scheduler=scheduler)
    made = generate(pipe, [1], num_inference_steps=3, scheduler=name, decode=False)
    assert made.latents.shape == (1, 4, 8, 8)
