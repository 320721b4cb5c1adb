"""Models of texts: diffusers' own pipeline with the cache, by ``sample``, ``bench`` and ``convert --text-from``."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import LattePipeline

from skipdit_cli import CachePolicy, add_skip_branches, load_pipeline
from skipdit_cli.conversion.text_parts import find_text_parts
from skipdit_cli.errors import UsageError
from skipdit_cli.media import read_metadata
from skipdit_cli.models import load_vae, save_branches, save_pipeline
from skipdit_cli.sampling.generate import batches, default_guidance, generate
from skipdit_cli.sampling.pixels import FRAMES_AT_ONCE, pixel_size, to_pixels
from skipdit_cli.sampling.schedulers import SCHEDULERS, RespacedDDIMScheduler, make_scheduler
from tests.support.measurements import relative_l2
from tests.support.pipeline_parts import tiny_vae
from tests.support.tiny_transformers import tiny_text_transformer

QUICK = {"num_inference_steps": 4, "seed": 3}
CAT, DOG = "a red cat", "a dog runs, a dog"
STEPS = ("--steps", 4)


@pytest.fixture(scope="module")
def pipe(text_pipeline):
    """One for all tests: what is asked of it must leave nothing behind."""
    return load_pipeline(text_pipeline)


@pytest.fixture
def skip_model(text_pipeline, tmp_path):
    """A folder with branches that do something."""
    pipe = load_pipeline(text_pipeline)
    torch.manual_seed(1)
    for linear in add_skip_branches(pipe.transformer).linears:
        torch.nn.init.normal_(linear.weight, std=0.05)
    shutil.copytree(text_pipeline, tmp_path / "skip")
    save_branches(pipe.transformer.skip_branches, tmp_path / "skip")
    return tmp_path / "skip"


def by_hand(pipe, prompt, seeds, **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    own = {"num_inference_steps": 4, "height": 16, "width": 16, "video_length": 4, "clean_caption": False}
    pipe.set_progress_bar_config(disable=True)
    return pipe(prompt, generator=generators, **{**own, **settings}).frames


def in_hub_cache(cache, name, folder):
    """Have the hub's cache say that it fetched ``folder`` as OWNER/NAME."""
    at, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    for inner in ("refs", "snapshots"):
        (at / inner).mkdir(parents=True)
    (at / "refs" / "main").write_text(commit)
    shutil.copytree(folder, at / "snapshots" / commit)


@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0, "negative_prompt": "a dog"}], ids=str
)
def test_without_a_cache_it_is_the_pipeline_called_by_hand(settings, pipe):
    made = generate(pipe, [CAT], **QUICK, **settings)
    assert torch.equal(made.latents, by_hand(pipe, CAT, [3], output_type="latent", **settings))
    decoded = (by_hand(pipe, CAT, [3], output_type="np", **settings) * 255).round()
    assert made.images.dtype == np.uint8 and made.images.shape == decoded.shape == (1, 4, 16, 16, 3)
    assert abs(made.images - decoded).max() <= 1 and abs(made.images - decoded).mean() < 0.01


def test_a_text_makes_the_same_video_alone_and_among_others(pipe):
    together = generate(pipe, [CAT, DOG, DOG], **QUICK).latents
    alone = generate(pipe, [DOG], num_inference_steps=4, seed=4).latents
    assert relative_l2(together[1], alone[0]) < 1e-5 and relative_l2(together[1], together[2]) > 0.1
    assert torch.equal(together, generate(pipe, [CAT, DOG, DOG], batch_size=2, **QUICK).latents)
    one_by_one = generate(pipe, [CAT, DOG, DOG], batch_size=1, **QUICK).latents
    assert relative_l2(one_by_one, together) < 1e-5
    diffusers = by_hand(pipe, [CAT, DOG], [3, 4], output_type="latent")  # pads texts that are not alone
    assert relative_l2(diffusers[1], alone[0]) > 0.1


def test_texts_are_made_at_once_only_where_they_are_the_same(pipe):
    assert batches(pipe, [CAT, CAT, CAT, DOG], 2) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert batches(pipe, [CAT, DOG, CAT]) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    classes = SimpleNamespace()  # a pipeline without a call of its own
    assert batches(classes, [1, 2, 3], 2) == [slice(0, 2), slice(2, 3)]


def test_an_interval_of_1_is_no_cache_and_longer_ones_count(skip_model):
    pipe = load_pipeline(skip_model)
    plain = generate(pipe, [CAT, DOG], **QUICK)
    every = generate(pipe, [CAT, DOG], policy=CachePolicy(1, 1), **QUICK)
    assert torch.equal(plain.latents, every.latents) and every.report.reused_steps == 0
    cached = generate(pipe, [CAT, DOG], policy=CachePolicy(1, forecast="reuse"), **QUICK)
    assert (cached.report.steps, cached.report.reused_steps) == (4, 2)
    assert (cached.report.blocks_run, cached.report.blocks_total) == (12, 16)
    assert 0.001 < relative_l2(cached.latents, plain.latents) < 1
    assert cached.cache_bytes == 2 * 4 * 16 * 16 * 4  # two halves of guidance, 4 frames of 16 tokens of width 16
    assert 0 < cached.denoise_seconds < cached.total_seconds


def test_a_second_run_is_a_first_one_and_the_pipeline_is_as_before(pipe, text_pipeline):
    own = pipe.scheduler
    policy = CachePolicy(1, forecast="linear")
    first = generate(pipe, [CAT], policy=policy, **QUICK).latents
    generate(pipe, [DOG, DOG], policy=CachePolicy(1), scheduler="dpm++", guidance_scale=1.0, num_inference_steps=3)
    assert torch.equal(generate(pipe, [CAT], policy=policy, **QUICK).latents, first)
    assert torch.equal(generate(load_pipeline(text_pipeline), [CAT], policy=policy, **QUICK).latents, first)
    assert pipe.scheduler is own and pipe.config.scheduler == ("diffusers", "DDIMScheduler")
    assert "forward" not in pipe.transformer.__dict__ and not pipe.transformer._forward_pre_hooks

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(pipe, [CAT], policy=policy, advance=fail, **QUICK)
    assert pipe.scheduler is own and not pipe.transformer._forward_pre_hooks
    assert torch.equal(generate(pipe, [CAT], policy=policy, **QUICK).latents, first)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs(name, pipe):
    policy = None if name == "heun" else CachePolicy(1)  # two evaluations a step
    steps = []
    made = generate(pipe, [CAT], scheduler=name, policy=policy, advance=lambda: steps.append(1), **QUICK)
    assert torch.isfinite(made.latents).all() and len(steps) == (7 if name == "heun" else 4)


def test_the_scheduler_of_the_pipeline_stays_its_own(pipe):
    assert (
        type(make_scheduler(None, pipe)) is type(pipe.scheduler) and make_scheduler(None, pipe) is not pipe.scheduler
    )
    assert type(make_scheduler("ddim", pipe)) is RespacedDDIMScheduler
    respaced = generate(pipe, [CAT], scheduler="ddim", **QUICK).latents
    assert relative_l2(respaced, generate(pipe, [CAT], **QUICK).latents) < 1e-5  # evenly spaced, they are the same


def test_sizes_and_the_default_guidance(pipe):
    assert default_guidance(pipe) == 7.5
    made = generate(pipe, [CAT], num_frames=1, height=24, width=32, **QUICK)
    assert made.images.shape == (1, 1, 24, 32, 3) and pixel_size(pipe, 24) == (24, 16)
    assert torch.equal(
        made.latents, by_hand(pipe, CAT, [3], video_length=1, height=24, width=32, output_type="latent")
    )


def test_noise_in_place_of_a_text(text_pipeline):
    pipe = load_pipeline(text_pipeline, text_encoder=None, tokenizer=None)
    made = generate(pipe, [None, None], **QUICK)
    assert relative_l2(made.latents[0], made.latents[1]) > 0.1
    assert relative_l2(made.latents, generate(pipe, [None, None], guidance_scale=1.0, **QUICK).latents) > 0.1
    for settings in ({"conditions": [CAT]}, {"conditions": [None], "negative_prompt": DOG}):
        with pytest.raises(UsageError, match="--text-from maxin-cn/Latte-1"):
            generate(pipe, **settings, **QUICK)


def test_what_does_not_fit_is_refused(pipe):
    for conditions, settings, says in [
        ([3], {}, "give --prompt"),
        ([], {}, "no --prompt"),
        ([CAT], {"num_frames": 3}, "makes 4, or 1"),
        ([CAT], {"height": 18}, "multiple of 4"),
        ([CAT], {"height": 12}, "divisible by 8"),
        ([CAT], {"cfg_channels": "3"}, "--cfg-channels 3"),
        ([CAT], {"negative_prompt": DOG, "guidance_scale": 1.0}, "guidance is off"),
    ]:
        with pytest.raises(UsageError, match=says):
            generate(pipe, conditions, **{**QUICK, **settings})


class Padded(LattePipeline):
    """A call such as other pipelines have: texts together, other names and defaults, the older callback."""

    def __call__(
        self, prompt=None, num_frames=9, num_inference_steps=9, guidance_scale=2.0, height=None, width=None,
        generator=None, output_type="pil", return_dict=True, callback=None,
    ):  # fmt: skip
        def tell(pipe, step, t, tensors):
            callback(step, t, tensors["latents"])
            return tensors

        own = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "generator": generator}
        own |= {"video_length": num_frames, "height": height, "width": width, "output_type": output_type}
        return super().__call__(prompt, **own, return_dict=False, callback_on_step_end=tell, clean_caption=False)


def test_what_a_pipeline_takes_is_read_off_its_call(pipe):
    other, steps = Padded(**pipe.components), []
    assert default_guidance(other) == 2.0 and batches(other, [CAT, DOG]) == [slice(0, 2)]
    made = generate(other, [CAT, DOG], policy=CachePolicy(1), advance=lambda: steps.append(1), **QUICK)
    assert made.images.shape == (2, 4, 16, 16, 3) and len(steps) == 4 and made.report.reused_steps == 2
    with pytest.raises(UsageError, match="--negative-prompt red, which a Padded does not take"):
        generate(other, [CAT], negative_prompt="red", **QUICK)


# The command


def test_the_videos_of_two_texts(skipdit, skip_model, tmp_path):
    out, npz = tmp_path / "out", tmp_path / "a.npz"
    given = ("--prompt", CAT, "--prompt", DOG, "--num-images", 2, "--negative-prompt", "red")
    ran = skipdit("sample", "-m", skip_model, *given, *STEPS, "--cache-layers", 1, "-o", out, "--npz", npz, "--json")
    assert ran.code == 0, ran.stderr
    assert "Loading" not in ran.stderr and "4 videos of 4 frames" in ran.stderr
    assert ran.json["skip_branches"] and ran.json["cache"]["reused_steps"] == 2
    own = read_metadata(out / "0002.mp4")["settings"]
    assert (own["prompt"], own["num_images"], own["seed"], own["negative_prompt"]) == ([DOG], 1, 2, "red")
    assert own["guidance_scale"] == 7.5 and own["fps"] == 8
    array, alone = np.load(npz)["arr_0"], tmp_path / "alone.npz"
    assert array.shape == (4, 4, 16, 16, 3)
    assert skipdit("sample", "--from", out / "0002.mp4", "-o", tmp_path / "b.gif", "--npz", alone).code == 0
    assert abs(np.load(alone)["arr_0"][0].astype(int) - array[2]).max() <= 1
    assert skipdit("sample", "--from", out / "grid.gif", "-o", tmp_path / "again.gif").code == 0
    assert (tmp_path / "again.gif").read_bytes() == (out / "grid.gif").read_bytes()


def test_texts_from_a_file_a_preset_or_the_environment(skipdit, text_pipeline, tmp_path):
    (tmp_path / "texts.txt").write_text(f"\ufeff{CAT}\n\n  {DOG}  \n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text(json.dumps({"sample": {"prompt": ["red, red", "a cat"]}}))
    run = ("sample", "-m", text_pipeline, "--steps", 1, "--guidance-scale", 1)

    def texts(name, *flags, env=None):
        ran = skipdit(*run, "-o", tmp_path / f"{name}.gif", *flags, env=env)
        assert ran.code == 0, ran.stderr
        return read_metadata(tmp_path / f"{name}.gif")["settings"]["prompt"]

    file = ("--prompts-file", tmp_path / "texts.txt")
    assert texts("a", *file) == [CAT, DOG]
    assert texts("b", "--preset", tmp_path / "own.yaml") == ["red, red", "a cat"]
    assert texts("c", "--preset", tmp_path / "own.yaml", *file) == [CAT, DOG]
    assert texts("d", "--from", tmp_path / "a.gif", "--prompt", "a") == ["a"]
    assert texts("e", env={"SKIPDIT_SAMPLE_PROMPT": f"{CAT}\n{DOG}"}) == [CAT, DOG]


# Decoders


def test_frames_are_decoded_as_the_pipeline_decodes_them(text_pipeline):
    """One video of more frames than are decoded at once; a second beside it changes nothing, as it would there."""
    latents = torch.randn(2, 4, FRAMES_AT_ONCE + 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for vae in (tiny_vae(), tiny_vae(temporal=True)):
        pipe = LattePipeline(None, None, vae, None, None)
        with torch.no_grad():
            expected = pipe.decode_latents(latents[:1], FRAMES_AT_ONCE + 2, decode_chunk_size=FRAMES_AT_ONCE)
        expected = (127.5 * expected + 128).clamp(0, 255).byte().movedim(1, -1)
        assert (to_pixels(pipe, latents[:1], 1) == expected.numpy()).all()
        assert (to_pixels(pipe, latents, 2)[:1] == expected.numpy()).all()
    frame = to_pixels(pipe, latents[:1, :, :1], 1)[0, 0]
    assert (frame != expected[0, 0].numpy()).any()  # a temporal decoder looks at the other frames
    assert to_pixels(pipe, latents[:, :, 0], 2).shape == (2, 8, 8, 3)


def test_another_decoder(skipdit, text_pipeline, tiny_latte, tmp_path):
    """Of a text model and of a class model, by the folder that holds it, the pipeline around it, and in a pipeline."""
    from skipdit_cli.sampling.pipelines.latte_class_pipeline import LatteClassPipeline

    tiny_vae(temporal=True).save_pretrained(tmp_path / "Latte" / "vae_temporal_decoder")
    tiny_vae(seed=1).save_pretrained(tmp_path / "Latte" / "vae")
    transformer, scheduler = tiny_latte(in_channels=4, out_channels=8), load_pipeline(text_pipeline).scheduler
    temporal = load_vae(tmp_path / "Latte" / "vae_temporal_decoder", 4)
    save_pipeline(LatteClassPipeline(transformer, temporal, scheduler), tmp_path / "classes")
    assert type(load_pipeline(tmp_path / "classes").vae) is type(temporal)
    shutil.rmtree(tmp_path / "classes" / "vae")
    index = tmp_path / "classes" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": [None, None]}))
    for model, of in ((text_pipeline, ("--prompt", CAT)), (tmp_path / "classes", ("--class-labels", 3))):
        found = {}
        for name, vae in {"own": (), "temporal": ("vae_temporal_decoder",), "plain": ("",)}.items():
            flags = ("--vae", tmp_path / "Latte" / vae[0]) if vae else ()
            npz = tmp_path / f"{model.name}-{name}.npz"
            ran = skipdit("sample", "-m", model, *of, *STEPS, *flags, "-o", npz.with_suffix(".gif"), "--npz", npz)
            assert ran.code == 0, ran.stderr
            found[name] = np.load(npz)["arr_0"]
        assert found["plain"].shape == found["temporal"].shape == (1, 4, 16, 16, 3)
        assert (found["plain"] != found["temporal"]).any() and found["own"].shape[:2] == (1, 4)
    in_hub_cache(tmp_path / "hub", "me/Latte", tmp_path / "Latte")
    for name, kind in {"me/Latte": tiny_vae(), "me/Latte/vae_temporal_decoder": temporal}.items():
        assert type(load_vae(name, 4, cache_dir=tmp_path / "hub")) is type(kind)
    replayed = tmp_path / "again.gif"
    assert skipdit("sample", "--from", tmp_path / "classes-temporal.gif", "-o", replayed).code == 0
    assert replayed.read_bytes() == (tmp_path / "classes-temporal.gif").read_bytes()


# Text parts


def test_an_official_file_with_the_text_parts_of_another_pipeline(skipdit, text_pipeline, tmp_path):
    transformer, out = tiny_text_transformer(), tmp_path / "out"
    state = {name: x for name, x in transformer.state_dict().items() if not name.endswith("pos_embed")}
    torch.save({"ema": state}, tmp_path / "Latte.pt")
    given = ("--num-attention-heads", 2, "--sample-size", 8, "--num-frames", 4)
    source = shutil.copytree(text_pipeline, tmp_path / "source")
    shutil.rmtree(source / "transformer")
    in_hub_cache(tmp_path / "hub", "me/texts", source)
    found = find_text_parts("me/texts", dict(transformer.config), with_vae=False, cache_dir=tmp_path / "hub")
    assert list(found.index) == ["tokenizer", "text_encoder"]
    (source / "text_encoder" / "pytorch_model.bin").write_bytes(b"the same in another format")
    ran = skipdit("convert", "-m", tmp_path / "Latte.pt", "-o", out, *given, "--text-from", source)
    assert ran.code == 0, ran.stderr
    assert "with the decoder of --text-from" in ran.stdout and f"sample -m {out} --prompt TEXT" in ran.stdout
    for part in ("tokenizer", "text_encoder", "vae"):
        for file in (text_pipeline / part).iterdir():
            assert (out / part / file.name).read_bytes() == file.read_bytes()
    assert not (out / "text_encoder" / "pytorch_model.bin").exists()
    assert type(LattePipeline.from_pretrained(out).text_encoder).__name__ == "T5EncoderModel"
    cache = ("--preset", "skip-dit-t2v-n3-700-50", "--steps", 20)
    ran = skipdit("sample", "-m", out, "--prompt", CAT, *cache, "-o", tmp_path / "a.mp4", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["skip_branches"] and ran.json["cache"]["reused_steps"] == 8  # t = 600, 550, 450, 400, ... 100
    by_diffusers = generate(load_pipeline(text_pipeline), [CAT], **QUICK).latents
    assert torch.equal(generate(load_pipeline(out), [CAT], **QUICK).latents, by_diffusers)


def test_a_tokenizer_nothing_here_can_read(text_pipeline, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    folder = shutil.copytree(text_pipeline, tmp_path / "pieces")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    with pytest.raises(UsageError, match=r"pip install 'skipdit-cli\[text\]'"):
        load_pipeline(folder)


# Bench


def test_bench_of_a_text(skipdit, skip_model, tmp_path):
    quick = (*STEPS, "--cache-interval", "1,2", "--rounds", 1, "--warmup", 0, "--no-exact")
    ran = skipdit(
        "bench", "-m", skip_model, "--prompt", CAT, "--prompt", DOG, *quick, "--json", "-o", tmp_path / "out"
    )
    assert ran.code == 0, ran.stderr
    assert (ran.json["prompt"], ran.json["batch_size"], ran.json["guidance_scale"]) == ([CAT, DOG], 1, 7.5)
    rows = [row for row in ran.json["rows"] if row["limit"] is not None]
    assert [row["temporal_difference"] == 0 for row in rows] == [row["identical"] for row in rows]
    assert {row["identical"] for row in rows} == {True, False}
    assert "| flicker |" in (tmp_path / "out" / "bench.md").read_text()


def test_bench_of_random_weights_needs_no_text(skipdit, tmp_path):
    config = {key: value for key, value in tiny_text_transformer().config.items() if not key.startswith("_")}
    preset = {"model": {"class": "LatteTransformer3DModel", "config": config}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(preset))
    run = ("bench", "--preset", tmp_path / "tiny.yaml", "--random-weights", *STEPS, "--rounds", 1)
    ran = skipdit(*run, "--cache-interval", 2, "--guidance-scale", 7.5, "--json")
    assert ran.code == 0, ran.stderr
    cached = next(row for row in ran.json["rows"] if row["case"] == "skip-cache")
    assert cached["latent_rel_l2"] > 0 and cached["psnr"] is cached["temporal_difference"] is None
    assert any("noise" in note for note in ran.json["notes"])
