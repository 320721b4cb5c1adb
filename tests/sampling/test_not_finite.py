"""NaN and infinity: a run ends with where they come from and writes nothing; no JSON and no quality hides them."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from safetensors.torch import load_file, save_file

from skipdit_cli import CachePolicy, console, load_pipeline
from skipdit_cli.bench import run as bench
from skipdit_cli.bench.quality import compare, psnr, rel_l2, ssim
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.finite import first_broken, is_finite, same_bits
from skipdit_cli.media import Sound
from skipdit_cli.models import save_pipeline
from skipdit_cli.sampling.by_text import ByText
from skipdit_cli.sampling.fitting import load_lora
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pixels import to_pixels
from skipdit_cli.sampling.schedulers import RespacedDDIMScheduler
from skipdit_cli.training.encoded.tensor_shard import open_shard, write_shard
from skipdit_cli.trunk import Trial
from tests.support.pipeline_parts import tiny_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAN, INF = float("nan"), float("inf")
HALF_WAY = "transformer_blocks.2.ff.net.0.proj.weight"
SAMPLE = ("--class-labels", 1, "--steps", 3)
FINETUNE = ("--max-train-steps", 2, "--train-batch-size", 2, "--learning-rate", 1e-3)


def spoil(folder, name: str, value: float = NAN, at=(0, 0)) -> None:
    """One element of a tensor in a model's folder, of the tensor whose name ends with ``name``."""
    file = next(folder.glob("*.safetensors"))
    state = load_file(file)
    name = next(key for key in state if key.endswith(name))
    state[name][at] = value
    save_file(state, file, metadata={"format": "pt"})


def strict(text: str):
    """JSON that says nothing that JSON does not know."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def ends(ran, says: str, *absent) -> None:
    assert ran.code == 1, ran.stderr
    assert says in strict(ran.stdout)["error"], ran.stderr
    assert not [path for path in absent if path.exists()]


@pytest.mark.parametrize(
    ("part", "name", "value", "at", "says"),
    [
        ("transformer", HALF_WAY, NAN, (0, 0), f"transformer holds nan in {HALF_WAY}[0, 0]"),
        ("transformer", "proj_out_2.bias", INF, (0,), "transformer holds inf in proj_out_2.bias[0]"),
        ("transformer", "embedding_table.weight", NAN, (10, 3), "embedding_table.weight[10, 3]"),  # without a class
        ("skip", "linears.1.weight", -INF, (2, 5), "holds -inf in skip_branches.linears.1.weight[2, 5]"),
    ],
)
@pytest.mark.parametrize("cache", [(), ("--cache-layers", 1)])
def test_a_weight_is_named_and_nothing_written(converted, skipdit, tmp_path, part, name, value, at, says, cache):
    model, npz = converted(), tmp_path / "a.npz"
    spoil(model / part, name, value, at)
    for target in (tmp_path / "a.png", tmp_path / "folder"):
        ran = skipdit("sample", "-m", model, *SAMPLE, *cache, "-o", target, "--npz", npz, "--json")
        ends(ran, says, target, npz)


def test_attention_does_not_hide_a_weight(latte_pipeline):
    """torch's own on the CPU takes a query of NaN for one that sees nothing, and makes a finite video."""
    model = latte_pipeline()
    spoil(model / "transformer", "temporal_transformer_blocks.0.attn1.to_q.weight")
    with pytest.raises(NotFiniteError, match="temporal_transformer_blocks.0.attn1.to_q.weight"):
        load_pipeline(model)


def test_videos_end_in_the_same_way(latte_pipeline, skipdit, tmp_path):
    model = latte_pipeline()
    spoil(model / "transformer", "attn1.to_q.weight")
    ran = skipdit("sample", "-m", model, *SAMPLE, "-o", tmp_path / "a.mp4", "--json")
    ends(ran, "attn1.to_q.weight[0, 0]", *(tmp_path / f"a.{kind}" for kind in ("mp4", "json", "png")))


@pytest.mark.parametrize(("part", "name"), [("transformer", "proj_out.weight"), ("text_encoder", "wi.weight")])
def test_the_parts_of_a_text_pipeline_are_told_apart(text_pipeline, skipdit, tmp_path, part, name):
    model = tmp_path / "model"
    shutil.copytree(text_pipeline, model)
    spoil(model / part, name)
    ran = skipdit("sample", "-m", model, "--prompt", "a cat", "--steps", 2, "-o", tmp_path / "a.mp4", "--json")
    ends(ran, f"its {part} holds nan in ", tmp_path / "a.mp4")


def latent_model(tiny_dit, folder, vae):
    save_pipeline(DiTPipeline(tiny_dit(in_channels=4, out_channels=8), vae, DDIMScheduler(clip_sample=False)), folder)
    return folder


def test_the_decoder_is_named(tiny_dit, text_pipeline, skipdit, tmp_path):
    model = latent_model(tiny_dit, tmp_path / "classes", tiny_vae())
    shutil.copytree(text_pipeline, tmp_path / "texts")
    for folder, of in ((model, ("--class-labels", 1)), (tmp_path / "texts", ("--prompt", "a cat"))):
        spoil(folder / "vae", "decoder.conv_in.weight", INF, (0, 0, 0, 0))
        ran = skipdit("sample", "-m", folder, *of, "--steps", 2, "-o", tmp_path / "out", "--json")
        ends(ran, "its vae holds inf in decoder.conv_in.weight[0, 0, 0, 0]", tmp_path / "out")


def test_a_decoder_that_overflows_says_what_to_give(tiny_dit, skipdit, tmp_path):
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.conv_out.weight.fill_(3e38)
    model = latent_model(tiny_dit, tmp_path / "model", vae)
    ran = skipdit("sample", "-m", model, *SAMPLE, "--dtype", "bfloat16", "-o", tmp_path / "a.png", "--json")
    ends(ran, "The decoder makes NaN or infinity of finite latents: bfloat16 is too narrow", tmp_path / "a.png")
    assert "give --dtype float32" in ran.json["error"]


def test_a_pipeline_that_decodes_by_itself_does_not_clip_infinity_to_white(monkeypatch, tmp_path):
    from tests.support.tiny_pipelines import flux

    pipe = flux()
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *given, **told: tuple(each / 0 for each in decode(*given, **told)))
    with pytest.raises(NotFiniteError, match="decoder makes NaN or infinity of finite latents"):
        generate(pipe, ["a cat"], num_inference_steps=2, height=16, width=16)


@pytest.fixture
def pipe(tiny_dit):
    return DiTPipeline(tiny_dit(), None, DDIMScheduler(clip_sample=False))


@pytest.mark.parametrize("policy", [None, CachePolicy(1, interval=2)])
def test_the_denoising_step_is_named_where_all_weights_are_numbers(pipe, policy):
    def late(module, args, kwargs, output):
        return tuple(each * (NAN if kwargs["timestep"].max() < 500 else 1) for each in output)

    hook, steps = pipe.transformer.register_forward_hook(late, with_kwargs=True), []
    with pytest.raises(NotFiniteError, match="The transformer's output is NaN or infinite at denoising step 3: try"):
        generate(pipe, [1], num_inference_steps=4, policy=policy, advance=lambda: steps.append(None))
    assert len(steps) == 4, "the second run is nobody's progress"
    hook.remove()
    assert is_finite(generate(pipe, [1], num_inference_steps=4, policy=policy).latents), "nothing is left behind"


@pytest.mark.parametrize(("at", "says"), [(2, "after denoising step 2"), (4, "after denoising step 4, the last")])
def test_a_scheduler_that_breaks_is_told_from_the_transformer(pipe, monkeypatch, at, says):
    step = RespacedDDIMScheduler.step

    def broken(self, output, t, *given, **told):
        last = t == self.timesteps[at - 1]
        return tuple(each / (0 if last else 1) for each in step(self, output, t, *given, **told))

    monkeypatch.setattr(RespacedDDIMScheduler, "step", broken)
    with pytest.raises(NotFiniteError, match=f"The latents are NaN or infinite {says}"):
        generate(pipe, [1], num_inference_steps=4)


def test_what_a_transformer_is_told_is_told_from_what_it_makes(text_pipeline, monkeypatch):
    pipe = load_pipeline(text_pipeline)
    hook = pipe.text_encoder.register_forward_hook(
        lambda module, given, output: replace_first(output, output[0] * INF)
    )  # finite weights, as in float16
    with pytest.raises(NotFiniteError, match="input encoder_hidden_states is NaN or infinite at denoising step 1"):
        generate(pipe, ["a cat"], num_inference_steps=2)
    hook.remove()


def replace_first(output, tensor):
    output["last_hidden_state"] = tensor
    return output


def test_sound_is_looked_at(text_pipeline, monkeypatch):
    pipe, own = load_pipeline(text_pipeline), ByText.run

    def with_sound(*given, **told):
        latents, pictures, _ = own(*given, **told)
        return latents, pictures, [Sound(np.array([[0.0, NAN]], dtype=np.float32), 8000)]

    monkeypatch.setattr(ByText, "run", with_sound)
    with pytest.raises(NotFiniteError, match="decoder"):
        generate(pipe, ["a cat"], num_inference_steps=2)


def test_pixels_are_never_made_of_nan(pipe):
    for value in (NAN, INF):
        with pytest.raises(NotFiniteError, match="no pictures"):
            to_pixels(pipe, torch.full((1, 3, 8, 8), value), 1)


def test_a_lora_is_named(tmp_path):
    from tests.support.tiny_pipelines import sd3

    pipe, file = sd3(), tmp_path / "lora.safetensors"
    name, query = next((name, part) for name, part in pipe.transformer.named_modules() if name.endswith("attn.to_q"))
    down, up = torch.ones(2, query.in_features), torch.ones(query.out_features, 2)
    up[3, 1] = NAN
    save_file({f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}, file)
    with pytest.raises(NotFiniteError, match=r"--lora .*lora_B.*weight\[3, 1\] \(of its LoRA\)"):
        load_lora(pipe, str(file))


# bench and quality


def test_a_bench_of_nan_says_which_weight(converted, skipdit, tmp_path):
    model = converted()
    spoil(model / "transformer", HALF_WAY)
    ran = skipdit(
        "bench", "-m", model, "--class-labels", 1, "--steps", 3, "--rounds", 1, "-o", tmp_path / "b", "--json"
    )
    ends(ran, HALF_WAY, tmp_path / "b")


def test_a_bench_whose_cached_rows_alone_are_nan_gives_them_no_quality(converted, skipdit, tmp_path, monkeypatch):
    def own(pipe, conditions, *, policy=None, **settings):
        made = generate(pipe, conditions, policy=policy, **settings)
        if policy is None:
            return made
        raise NotFiniteError("The latents broke.", replace(made, images=None, latents=made.latents * NAN))

    monkeypatch.setattr(bench, "generate", own)
    ran = skipdit(
        "bench", "-m", converted(), "--class-labels", 1, "--steps", 4, "--rounds", 1, "--cache-interval", 2,
        "--no-exact", "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    for report in (strict(ran.stdout), strict((tmp_path / "b" / "bench.json").read_text())):
        cached = [row for row in report["rows"] if row["case"] in ("skip-cache", "vanilla-cache")]
        for row in cached:
            quality = {row[name] for name in ("psnr", "ssim", "latent_rel_l2", "temporal_difference")}
            assert quality == {None} and row["identical"] is False and row["seconds"] > 0
        notes = [note for note in report["notes"] if "The latents broke." in note]
        assert len(notes) == len(cached) == 2 and all("no quality, for it is NaN" in note for note in notes)
    ran = skipdit("bench", "-m", converted("again"), *SAMPLE, "--rounds", 1, "--no-exact", "--min-psnr", 1)
    assert ran.code == 3 and "best has 0.0 dB" in ran.stderr


def test_quality_of_what_is_no_number_is_none():
    pictures, latents = np.zeros((1, 8, 8, 3), np.uint8), torch.ones(1, 3, 8, 8)
    for one, other in ((latents * NAN, latents), (latents, latents * NAN), (latents * INF, latents * INF)):
        quality = compare(pictures, pictures, one, other)
        assert (quality.psnr, quality.ssim, quality.latent_rel_l2, quality.identical) == (None, None, None, False)
    assert compare(None, pictures, latents, latents).identical is False
    broken = torch.full((1, 3, 16, 16), NAN)
    assert math.isnan(psnr(broken, broken)) and math.isnan(ssim(broken, broken))
    assert math.isnan(psnr(broken, broken * 0 + 1))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_quality_of_constant_pictures_and_of_zeros(level):
    pictures, zeros = np.full((2, 8, 8, 3), level, np.uint8), torch.zeros(2, 3, 8, 8)
    quality = compare(pictures, pictures, zeros, zeros)
    assert (quality.psnr, quality.ssim, quality.latent_rel_l2, quality.identical) == (None, 1.0, 0.0, True)
    assert compare(pictures, pictures, zeros + 1, zeros).latent_rel_l2 is None, "infinitely far from nothing"
    assert rel_l2(zeros, zeros) == 0


# convert, the probe, the proof


@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--no-verify",), ("--dtype", "bfloat16")])
def test_convert_names_what_the_source_holds(tiny_pipeline, skipdit, tmp_path, flags):
    model = tiny_pipeline()
    spoil(model / "transformer", HALF_WAY, INF)
    ran = skipdit("convert", "-m", model, "-o", tmp_path / "out", *flags, "--json")
    ends(ran, f"in its transformer, inf in {HALF_WAY}[0, 0]", tmp_path / "out")
    assert "branches" not in ran.stderr


def test_convert_names_another_part(tiny_dit, skipdit, tmp_path):
    model = latent_model(tiny_dit, tmp_path / "model", tiny_vae())
    spoil(model / "vae", "encoder.conv_in.bias", NAN, (3,))
    ends(skipdit("convert", "-m", model, "-o", tmp_path / "out", "--json"), "nan in encoder.conv_in.bias[3]",
         tmp_path / "out")  # fmt: skip


def test_convert_to_a_dtype_that_cannot_hold_a_weight(tiny_pipeline, skipdit, tmp_path):
    model = tiny_pipeline()
    spoil(model / "transformer", HALF_WAY, 1e6)
    ran = skipdit("convert", "-m", model, "-o", tmp_path / "out", "--dtype", "float16", "--json")
    ends(ran, f"1e+06 in {HALF_WAY}, which float16 cannot hold", tmp_path / "out")
    assert skipdit("convert", "-m", model, "-o", tmp_path / "out", "--dtype", "bfloat16").code == 0


def test_the_probe_compares_bits(tiny_dit):
    one = torch.tensor([1.0, NAN, INF, 0.0])
    assert same_bits(one, one.clone()) and not same_bits(one, one.nan_to_num())
    assert not same_bits(one, one.double()) and not same_bits(one, one[:3])
    assert not same_bits(torch.tensor([NAN]), torch.tensor([0.0]))
    assert first_broken([("a", torch.ones(2)), ("b", one)]) == "nan in b[1]" and first_broken([("a", one[:1])]) is None
    model = tiny_dit()
    with torch.no_grad():
        model.transformer_blocks[1].ff.net[2].weight[0, 0] = NAN
    number = torch.tensor([1])
    given = {"hidden_states": torch.randn(1, 1, 8, 8), "timestep": number, "class_labels": number}
    with pytest.raises(NotFiniteError, match=r"holds nan in transformer_blocks.1.ff.net.2.weight\[0, 0\]"):
        Trial(model, given).accept()


# training


def test_training_names_the_weight_before_it_begins(converted, skipdit, tmp_path, fresh_accelerate):
    model = converted()
    for part, name in (("transformer", HALF_WAY), ("skip", "linears.0.weight")):
        spoil(model / part, name)
        ran = skipdit("finetune", "-m", model, "--data", "digits", *FINETUNE, "-o", tmp_path / "out", "--json")
        ends(ran, "holds nan in ", tmp_path / "out")


@pytest.fixture
def latent_training(tiny_dit, tmp_path, skipdit):
    """The flags of a run on latents of four pictures."""
    from PIL import Image

    model, data = latent_model(tiny_dit, tmp_path / "model", tiny_vae()), tmp_path / "data"
    assert skipdit("convert", "-m", model, "-o", tmp_path / "converted").code == 0
    for number in range(4):
        (data / str(number)).mkdir(parents=True)
        Image.new("RGB", (16, 16), (60 * number, 9, 9)).save(data / str(number) / f"{number}.png")
    return ("finetune", "-m", tmp_path / "converted", "--data", data, *FINETUNE, "-o", tmp_path / "out", "--json")


def test_training_names_the_picture_that_the_vae_cannot_encode(
    latent_training, skipdit, tmp_path, monkeypatch, fresh_accelerate
):
    from skipdit_cli.training.data import latent_dataset as latents
    from skipdit_cli.training.objective import objective

    own = latents.moments

    def broken(vae, pixels):
        made = own(vae, pixels)
        made[pixels.flatten(1).amax(1) > 120 / 127.5 - 1 + 0.3] = NAN  # the last picture
        return made

    for module in (latents, objective):
        monkeypatch.setattr(module, "moments", broken)
    for more in ((), ("--overwrite", "--cache-latents", tmp_path / "kept")):
        ran = skipdit(*latent_training, *more)
        ends(ran, "The VAE makes NaN or infinity of ", tmp_path / "out" / "model_index.json")
        assert f"{tmp_path / 'data' / '3' / '3.png'}" in ran.json["error"]


def test_a_kept_latent_that_is_no_number_is_named(latent_training, skipdit, tmp_path, fresh_accelerate):
    kept = ("--cache-latents", tmp_path / "kept")
    assert skipdit(*latent_training, *kept).code == 0
    (file,) = (tmp_path / "kept").glob("*.safetensors")
    shard = open_shard(file)
    state = {name: {"moments": shard.read(at)["moments"] * NAN} for at, name in enumerate(shard.names)}
    file.unlink()
    write_shard(file.parent, shard.kind, shard.settings, shard.data, state)
    ran = skipdit(*latent_training, *kept, "--overwrite")
    ends(ran, "holds NaN or infinity; delete it and run again")
    assert "png" in ran.json["error"]


def test_a_grid_of_nan_is_a_warning_and_no_picture(latent_training, skipdit, tmp_path, monkeypatch, fresh_accelerate):
    from skipdit_cli.training.run import logs as record

    def broken(*given, **told):
        raise NotFiniteError("The latents broke.")

    monkeypatch.setattr(record, "generate", broken)
    ran = skipdit(*latent_training, "--validation-steps", 1)
    assert ran.code == 0 and "The latents broke." in ran.stderr
    assert not list((tmp_path / "out").rglob("samples/*.png"))


# JSON and flags


def test_all_json_is_valid(tmp_path):
    from PIL import Image

    from skipdit_cli.media.history import save_history
    from skipdit_cli.media.pictures import METADATA_KEY, save_png

    value = {"a": NAN, "b": [INF, {"c": -INF}], 1: (1.5, None)}
    assert strict(console.to_json(value)) == {"a": None, "b": [None, {"c": None}], "1": [1.5, None]}
    save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", value)
    strict(Image.open(tmp_path / "a.png").info[METADATA_KEY])
    save_history(tmp_path / "a.mp4", value)
    strict((tmp_path / "a.json").read_text())


@pytest.mark.parametrize(
    "flags",
    [
        ("--guidance-scale", "nan"),
        ("--guidance-scale", "inf"),
        ("--fps", "nan"),
        ("--cache-layers", 1, "--cache-window", "nan:5"),
        ("--pipeline-arg", "eta=.nan"),
    ],
)
def test_no_flag_is_nan(tiny_pipeline, skipdit, tmp_path, flags):
    ran = skipdit("sample", "-m", tiny_pipeline(), *SAMPLE, *flags, "-o", tmp_path / "a.png", "--json")
    assert ran.code == 2 and f"Got {flags[-2]} " in ran.json["error"] and not (tmp_path / "a.png").exists()
