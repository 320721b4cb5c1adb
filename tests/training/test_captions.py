"""Training on captions: what each family's transformer is told, what its loss is, the way through the command."""

import json
import math
from functools import partial

import pytest
import torch

from skipdit_cli import families
from skipdit_cli.models import load_pipeline
from skipdit_cli.training.data.order import draw, generator
from skipdit_cli.training.data.pixel_dataset import Batch
from skipdit_cli.training.objective.conditioning import conditioning_of
from skipdit_cli.training.objective.flow import loss_of
from skipdit_cli.training.objective.loss import DiffusionLoss
from skipdit_cli.training.objective.objective import Objective
from skipdit_cli.training.weighting import Weighting
from tests.support.caption_training import SIDE, TEXTS, changed, command, losses, prepare, rename
from tests.support.tiny_pipelines import build
from tests.support.tiny_training_pipelines import BASES, VARIANTS, text_pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
TRAINED = {name: family.training for name, family in families.FAMILIES.items() if family.training is not None}
FAMILIES = [name for name, trained in TRAINED.items() if hasattr(trained.captions, "encode")]
KEPT = torch.tensor([False, False])
TRIED = [name for name in (*BASES, *VARIANTS) if name not in ("latte", "pixart-1024", "wan-5b", "wan-22")]


@pytest.fixture
def prepared(tmp_path):
    return partial(prepare, tmp_path)


def latent_shape(name: str) -> tuple[int, ...]:
    return {"latte": (4, 4, 8, 8), "wan": (2, 2, 4, 4)}.get(name, (2, 8, 8))


def sampled(pipe, name: str, text: str, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer answered in the first step of the pipeline's own call, and at which time."""
    seen, side = [], SIDE.get(name, 16)
    settings = {"height": side, "width": side, "num_inference_steps": 2, "output_type": "latent", "latents": noise}
    settings |= {} if name == "flux" else {"guidance_scale": 1.0}
    settings |= {"latte": {"video_length": 4}, "wan": {"num_frames": 5}}.get(name, {})
    settings |= {"use_resolution_binning": False} if name in ("pixart", "hunyuan") else {}
    if name == "flux":
        settings["latents"] = pipe._pack_latents(noise, *noise.shape)
    hook = pipe.transformer.register_forward_hook(
        lambda module, given, told, output: seen.append((given, told, output)), with_kwargs=True
    )
    with torch.no_grad():
        pipe(text, **settings)
    hook.remove()
    given, told, output = seen[0]
    time = told.get("timestep", given[1] if len(given) > 1 else None)
    if name == "flux":
        return pipe._unpack_latents(output[0], side, side, pipe.vae_scale_factor), time * 1000
    return output[0], time


@pytest.mark.parametrize("name", [*BASES, *VARIANTS])
def test_a_caption_in_a_batch_is_told_as_the_pipeline_tells_it_alone(name):
    pipe, source = text_pipeline(name), torch.Generator().manual_seed(0)
    name = name.split("-")[0]
    noises = [torch.randn(1, *latent_shape(name), generator=source) for _ in TEXTS]
    alone = [sampled(pipe, name, text, noise) for text, noise in zip(TEXTS, noises)]
    times = torch.cat([time.flatten()[:1] for _, time in alone])
    started = torch.cat(noises)
    condition = conditioning_of(pipe, CPU)
    with torch.no_grad():
        both = condition.predict(pipe.transformer, started, times, TEXTS, KEPT)
        swapped = condition.predict(pipe.transformer, started, times, TEXTS[::-1], KEPT)
        dropped = condition.predict(pipe.transformer, started, times, TEXTS, torch.tensor([True, False]))
        empty = condition.predict(pipe.transformer, started, times, ["", "dog"], KEPT)
    for at, (answer, _) in enumerate(alone):
        assert torch.allclose(both[at], answer[0], atol=1e-4), (both[at] - answer[0]).abs().max()
    assert (both - swapped).abs().max() > 1e-3 and torch.equal(dropped, empty) and not torch.equal(dropped, both)


@pytest.mark.parametrize("name", TRIED)
def test_finetune_with_captions(skipdit, prepared, tmp_path, name):
    run = command(name, *prepared(name), tmp_path / "kept")
    whole = skipdit(*run, "-o", tmp_path / "whole", "--max-train-steps", 4)
    assert whole.code == 0, whole.stderr
    assert "0 of 3 texts are kept" in whole.stdout and "0 of 6 latents are kept" in whole.stdout
    begun = skipdit(*run, "-o", tmp_path / "parts", "--max-train-steps", 2)
    assert "3 of 3 texts are kept" in begun.stdout and "6 of 6 latents are kept" in begun.stdout
    run += ("--max-train-steps", 4, "--resume-from-checkpoint", "latest")
    assert skipdit(*run, "-o", tmp_path / "parts").code == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "whole")) == 4
    assert all(math.isfinite(value) for row in losses(tmp_path / "whole") for value in row)
    assert not changed(tmp_path / "whole", tmp_path / "parts")
    touched = changed(tmp_path / "model", tmp_path / "whole")
    assert ("distilled with guidance: it is trained at a scale of 3.5" in whole.stdout) == (name == "flux")
    if name == "hunyuan":
        assert {"blocks.0.attn1.to_q.weight", "blocks.5.skip_linear.weight"} <= touched
    else:
        assert touched and all(parameter.startswith("skip_branches.") for parameter in touched)


def test_a_model_with_long_skips_of_its_own_is_trained_whole(skipdit, prepared, tmp_path):
    model, data = prepared("hunyuan")
    ran = skipdit("finetune", "-m", model, "--data", data, "-o", tmp_path / "out")
    assert ran.code == 2 and "it has long skips of its own: give --train all." in ran.stderr


def test_stage_2_trains_everything_and_encodes_at_each_step_without_a_store(skipdit, prepared, tmp_path):
    model, data = prepared("sd3")
    run = command("sd3", model, data, tmp_path / "kept")
    assert skipdit(*run, "-o", tmp_path / "one", "--max-train-steps", 2).code == 0
    run = ("finetune", "-m", tmp_path / "one", "--train", "all", *run[run.index("--data") : run.index("--train")])
    second = skipdit(*run, "-o", tmp_path / "two", "--max-train-steps", 2, "--weighting-scheme", "mode")
    assert second.code == 0, second.stderr
    touched = changed(tmp_path / "one", tmp_path / "two")
    assert {"proj_out.weight", "skip_branches.linears.0.weight", "transformer_blocks.0.attn.to_q.weight"} <= touched
    again = skipdit(*run, "-o", tmp_path / "two", "--max-train-steps", 2, "--overwrite")
    assert again.code == 0, again.stderr
    index = json.loads((tmp_path / "two" / "model_index.json").read_text())
    assert (
        index["text_encoder_3"] == ["transformers", "T5EncoderModel"] and (tmp_path / "two" / "tokenizer_3").is_dir()
    )


def by_hand(name: str, pipe, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor):
    """(noisy latents, times, target) from the papers' formulas."""
    if name in ("pixart", "hunyuan"):
        signal = pipe.scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        level = (1 - signal**2).sqrt()
        target = noise if name == "pixart" else signal * noise - level * x0
        return signal * x0 + level * noise, t, target
    even = (1000 - t) / 1000
    if name == "flux":  # exponential, by 16 tokens: 0.5 at 256, 1.15 at 4096
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
        sigma = math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    else:
        even = 1 - t * (1 - 1 / 1000) / 1000 if name == "wan" else even  # UniPC's spacing stops one short of the least
        sigma = 3 * even / (1 + 2 * even)
    times, level = 1000 * sigma, sigma.view(-1, *[1] * (x0.ndim - 1))
    return (1 - level) * x0 + level * noise, times.long() if name == "wan" else times, noise - x0


@pytest.mark.parametrize("name", TRIED)
def test_the_loss_against_one_worked_out_by_hand(name):
    pipe, learned = text_pipeline(name), name != "pixart-sigma-of-noise"
    name = name.split("-")[0]
    side = SIDE.get(name, 16)
    pixels = torch.rand(2, 3, *([5] if name == "wan" else []), side, side, generator=torch.Generator().manual_seed(1))
    objective = Objective(pipe, CPU, seed=5, label_dropout=0.5)
    with torch.no_grad():
        ours = objective(pipe.transformer, Batch(pixels * 2 - 1, TEXTS, None, []), 7, 0)
        parameters = torch.cat([pipe.vae.encode(one).latent_dist.parameters for one in (pixels * 2 - 1).split(1)])
        mean, spread = parameters.chunk(2, dim=1)
        sample = mean + (0.5 * spread.clamp(-30, 20)).exp() * torch.randn(mean.shape, generator=generator(5, 3, 7, 0))
        decoded = {"pixart": sample * 0.7, "sd3": (sample - 0.06) * 1.5, "flux": (sample - 0.11) * 0.36}
        decoded["hunyuan"] = sample * 0.18215
        if name == "wan":
            own = pipe.vae.config
            channel = [torch.tensor(numbers).view(2, 1, 1, 1) for numbers in (own.latents_mean, own.latents_std)]
            decoded["wan"] = (sample - channel[0]) / channel[1]
        x0, source = decoded[name], generator(5, 2, 7, 0)
        noise = torch.randn(x0.shape, generator=source)
        if name in ("pixart", "hunyuan"):
            t = torch.randint(1000, (2,), generator=source)
        else:
            t = (torch.randn(2, generator=source).sigmoid() * 1000).long()
        dropped = torch.rand(2, generator=source) < 0.5
        xt, times, target = by_hand(name, pipe, x0, noise, t)
        answer = objective.condition.predict(pipe.transformer, xt, times, TEXTS, dropped)
    mse = (answer[:, : x0.shape[1]] - target).square().mean()
    assert float(ours.mse) == pytest.approx(float(mse), rel=1e-4)
    if name in ("pixart", "hunyuan") and learned:
        assert float(ours.vb) > 0 and float(ours.total) == pytest.approx(float(mse + ours.vb), rel=1e-4)
    else:
        assert float(ours.vb) == 0 and float(ours.total) == pytest.approx(float(mse), rel=1e-4)


def test_v_and_epsilon_of_the_same_answer_have_the_same_bound():
    betas = torch.linspace(1e-4, 0.02, 1000)
    x0, noise = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    epsilon, t = noise + 0.1, torch.tensor([20, 900])
    plain, velocity = DiffusionLoss(betas), DiffusionLoss(betas, "v_prediction")
    xt, level = plain.add_noise(x0, noise, t), (1 - (1 - betas.double()).cumprod(0))[t].sqrt().float().view(2, 1, 1, 1)
    v = (epsilon - level * xt) / (1 - level**2).sqrt()
    variance = torch.zeros_like(x0)
    one = plain(torch.cat([epsilon, variance], 1), x0, noise, t)
    other = velocity(torch.cat([v, variance], 1), x0, noise, t)
    assert float(one.vb) == pytest.approx(float(other.vb), rel=1e-3) and float(one.mse) != pytest.approx(other.mse)


def test_weighting_schemes_draw_or_weigh():
    scheduler = text_pipeline("sd3").scheduler
    x0, noise, t = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2), torch.tensor([100, 500, 900])
    even = (1000 - t) / 1000
    sigma = 3 * even / (1 + 2 * even)
    weights = {"none": torch.ones(3), "logit_normal": torch.ones(3), "mode": torch.ones(3)}
    weights |= {"sigma_sqrt": sigma**-2, "cosmap": 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))}
    for scheme, expected in weights.items():
        loss = loss_of(scheduler, Weighting(scheme))
        found = loss(torch.zeros_like(x0), x0, noise, t)
        assert float(found.total) == pytest.approx(float(expected.mean()), rel=1e-5) and float(found.mse) == 1
        drawn = draw((1, 2), (4000, 1), 1000, 0.1, loss.density)
        again = draw((1, 2), (4000, 1), 1000, 0.1, loss.density)
        assert torch.equal(drawn.t, again.t) and 0 <= drawn.t.min() and drawn.t.max() < 1000
        middle = ((drawn.t > 250) & (drawn.t < 750)).float().mean()
        assert (middle > 0.6) == (scheme in ("logit_normal", "mode")), scheme
    leaning = loss_of(scheduler, Weighting(logit_mean=2.0, logit_std=0.1))
    assert draw((1, 2), (400, 1), 1000, 0.1, leaning.density).t.min() > 800


def test_branches_are_trained_on_top_of_a_lora(skipdit, prepared, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    model, data = prepared("sd3")
    pipe = load_pipeline(model)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(pipe.transformer))
    run = command("sd3", model, data, tmp_path / "kept")
    lora = ("--lora", tmp_path / "lora")
    ran = skipdit(*run, *lora, "-o", tmp_path / "with", "--max-train-steps", 2)
    assert ran.code == 0, ran.stderr
    assert skipdit(*run, "-o", tmp_path / "without", "--max-train-steps", 2).code == 0
    assert losses(tmp_path / "with") != losses(tmp_path / "without")
    touched = changed(model, tmp_path / "with")
    assert touched and all(name.startswith("skip_branches.") for name in touched)
    assert not [path for path in (tmp_path / "with").rglob("*") if "lora" in path.name]
    more = (*run, "-o", tmp_path / "with", "--max-train-steps", 3, "--resume-from-checkpoint", "latest")
    other = skipdit(*more)
    assert other.code == 2 and "lora" in other.stderr
    assert skipdit(*more, *lora).code == 0

    trained, fresh = (load_pipeline(tmp_path / name) for name in ("with", "with"))
    trained.load_lora_weights(tmp_path / "lora")
    x, times = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    answers = []
    with torch.no_grad():
        for each in (trained, fresh, pipe):
            answers.append(conditioning_of(each, CPU).predict(each.transformer, x, times, ["dog"], KEPT[:1]))
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_what_is_trained_has_a_family_where_it_has_captions():
    assert set(FAMILIES) == {name for name, trained in TRAINED.items() if trained.captions}


def test_what_cannot_be_trained_is_refused_in_a_sentence(skipdit, prepared, tmp_path):
    model, data = prepared("flux")
    run = ("finetune", "-m", model, "--data", data, "-o", tmp_path / "out")

    def refused(*flags) -> str:
        ran = skipdit(*run, *flags)
        assert ran.code == 2 and not (tmp_path / "out").exists() and ran.stderr.count("\n") == 1, ran.stderr
        return ran.stderr

    assert "--height 18 but expected a multiple of 4" in refused("--height", 18)
    assert "which are images, but the model is trained on images with captions" in refused("--data", "digits")
    assert "this model makes images" in refused("--num-frames", 4)
    assert "which does not exist" in refused("--lora", tmp_path / "none")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    assert "cannot be loaded into a FluxPipeline" in refused("--lora", tmp_path / "bad.safetensors")
    assert "--lora with --train all" in refused("--lora", tmp_path / "bad.safetensors", "--train", "all")
    index = json.loads((model / "model_index.json").read_text())
    rename(model, text_encoder_2=[None, None], tokenizer_2=[None, None])
    weights = model / "text_encoder" / "model.safetensors"
    weights.rename(tmp_path / "weights")
    assert "no text_encoder_2 to read captions with" in refused()  # which is said before weights are looked at
    (tmp_path / "weights").rename(weights)
    rename(model, **{**index, "vae": [None, None]})
    assert "no VAE" in refused()
    rename(model, **{**index, "_class_name": "FluxFillPipeline"})
    kinds = "FluxPipeline, FluxImg2ImgPipeline or FluxInpaintPipeline"
    assert f"Got a FluxFillPipeline, but of a FluxTransformer2DModel {kinds} can be trained here." in refused()
    rename(model, **index)
    config = model / "transformer" / "config.json"
    config.write_text(config.read_text().replace("FluxTransformer2DModel", "MochiTransformer3DModel"))
    assert "a MochiTransformer3DModel by its config.json, but a FluxTransformer2DModel by" in refused()
    mochi = tmp_path / "mochi"
    build("mochi").save_pretrained(mochi)
    said = "is of a MochiTransformer3DModel; what can be trained here is DiTTransformer2DModel"
    assert said in refused("--model", mochi)
