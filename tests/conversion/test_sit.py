"""SiT checkpoints, which have DiT's names and shapes: told apart, converted to flow matching, sampled, trained."""

import argparse
import json
import shutil

import pytest
import torch
from PIL import Image

from skipdit_cli import load_pipeline
from skipdit_cli.sampling.generate import generate
from tests.support.measurements import relative_l2
from tests.support.pipeline_parts import tiny_vae

SIT_ARGS = {"model": "SiT-S/2", "path_type": "Linear", "prediction": "velocity", "num_classes": 10}
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def dit_state(golden):
    """The state dict of the golden DiT: with other arguments beside it, that of a SiT."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        data = torch.load(golden("dit").checkpoint, weights_only=True)
    return data.get("ema", data.get("model", data))


@pytest.fixture
def save(dit_state, golden, tmp_path):
    """``save(name, **args)``: an official file with those weights and arguments, and the flags to convert it."""

    def write(name="0005000.pt", **arguments):
        held = {"ema": dit_state, "args": argparse.Namespace(**arguments)} if arguments else dit_state
        torch.save(held, tmp_path / name)
        heads = golden("dit").architecture["num_heads"]
        return ["-m", tmp_path / name, "-o", tmp_path / "out", "--num-attention-heads", heads]

    return write


@pytest.fixture
def sit(save, skipdit, tmp_path):
    outcome = skipdit("convert", *save(**SIT_ARGS))
    assert outcome.code == 0, outcome.stderr
    return tmp_path / "out"


@torch.no_grad()
def velocity(transformer, x, t, y):
    """What SiT's code returns at its time t (B,), 0 for noise: data - noise."""
    return -transformer(x, timestep=1000 * (1 - t), class_labels=y).sample


def test_it_is_a_pipeline_of_flow_matching(sit):
    index = json.loads((sit / "model_index.json").read_text())
    assert index["_class_name"] == "SiTPipeline"
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    pipe = load_pipeline(sit)
    assert pipe.transformer.config.out_channels == pipe.transformer.config.in_channels
    assert pipe.transformer.skip_branches.config.time_embedding == "sit"


def test_the_velocity_is_that_of_the_official_network(sit, golden):
    """SiT's network is DiT's, told a time from 0 to 1: the golden forward is its forward at t = 500, say."""
    case, transformer = golden("dit"), load_pipeline(sit).transformer
    x, t, y = case.io["x"], case.io["t"], case.io["y"]
    assert relative_l2(velocity(transformer, x, t.float(), y), case.io["out_forward"][:, : x.shape[1]]) < TOLERANCE


def test_a_sample_is_that_of_euler_steps_by_the_official_network(sit, golden_pipeline):
    """x + v(x, t) / N from noise at t = 0 to data at t = 1, by a network converted as the DiT whose names it has."""
    network, steps = load_pipeline(golden_pipeline("dit")).transformer, 5
    pipe, labels = load_pipeline(sit), torch.tensor([1, 2])
    made = generate(pipe, [1, 2], num_inference_steps=steps, guidance_scale=3.0, seed=7, decode=False).latents
    shape = (pipe.transformer.config.in_channels, *[pipe.transformer.config.sample_size] * 2)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    null = torch.full_like(labels, pipe.transformer.config.num_embeds_ada_norm)
    for step in range(steps):
        t = torch.full((4,), step / steps)
        with torch.no_grad():
            both = network(torch.cat([x, x]), timestep=t, class_labels=torch.cat([labels, null])).sample
        conditional, unconditional = both[:, : shape[0]].chunk(2)
        x = x + (unconditional + 3.0 * (conditional - unconditional)) / steps
    assert relative_l2(made, x) < TOLERANCE


def test_more_steps_converge(sit):
    pipe = load_pipeline(sit)
    few, many, most = (
        generate(pipe, [1], num_inference_steps=steps, seed=3, decode=False).latents for steps in (25, 50, 100)
    )
    assert relative_l2(many, most) < 0.6 * relative_l2(few, most)


def test_it_is_sampled_with_a_cache_and_by_its_own_scheduler_alone(sit, skipdit, tmp_path):
    given = ["sample", "-m", sit, "--class-labels", "3", "--steps", 6, "--cache-layers", 1]
    outcome = skipdit(*given, "-o", tmp_path / "a.png", "--json")
    assert outcome.code == 0, outcome.stderr
    assert "3 of 6 steps reused" in outcome.stderr
    refused = skipdit(*given, "--scheduler", "ddpm", "-o", tmp_path / "b.png")
    assert refused.code == 2 and "follow a flow" in refused.stderr


def test_the_loss_is_that_of_flow_matching(sit):
    from skipdit_cli.training.objective.flow import FlowLoss
    from skipdit_cli.training.objective.objective import Objective

    loss = Objective(load_pipeline(sit), torch.device("cpu"), 0, 0.1).loss
    assert isinstance(loss, FlowLoss) and loss.weighting.scheme == "none"
    x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0, 750])
    assert torch.allclose(loss.times(t, x0), torch.tensor([1000.0, 250.0]))
    assert torch.allclose(loss.add_noise(x0, noise, t)[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert loss(noise - x0, x0, noise, t).total == 0


def test_it_is_trained_benched_and_described(save, skipdit, tmp_path, fresh_accelerate):
    tiny_vae().save_pretrained(tmp_path / "vae")
    folder, run = tmp_path / "out", tmp_path / "run"
    assert skipdit("convert", *save(**SIT_ARGS), "--vae", tmp_path / "vae").code == 0
    (tmp_path / "data" / "0").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / "0" / "a.png")
    trained = skipdit("finetune", "-m", folder, "--data", tmp_path / "data", "-o", run, "--max-train-steps", 2,
                      "--train-batch-size", 1)  # fmt: skip
    assert trained.code == 0, trained.stderr
    assert json.loads((run / "model_index.json").read_text())["_class_name"] == "SiTPipeline"
    assert load_pipeline(run).transformer.skip_branches.linears[0].weight.abs().max() > 0
    benched = skipdit("bench", "-m", run, "--class-labels", 1, "--cache-layers", 1, "--cache-interval", 2,
                      "--steps", 4, "--rounds", 1, "--no-exact", "-o", tmp_path / "bench", "--json")  # fmt: skip
    assert benched.code == 0, benched.stderr
    assert {row["case"] for row in benched.json["rows"]} >= {"vanilla", "skip", "skip-cache", "fewer-steps"}
    described = skipdit("info", "-m", run, "--json")
    assert (described.code, described.json["time_embedding"]) == (0, "sit")


def test_without_its_branches_it_still_counts_time_from_noise(sit, golden, skipdit, tmp_path):
    shutil.rmtree(sit / "skip")
    case = golden("dit")
    x, t, y = case.io["x"], case.io["t"], case.io["y"]
    expected = case.io["out_forward"][:, : x.shape[1]]
    assert relative_l2(velocity(load_pipeline(sit).transformer, x, t.float(), y), expected) < TOLERANCE
    again = skipdit("convert", sit, "-o", tmp_path / "again", "--json")
    assert again.code == 0 and (again.json["process"], again.json["time_embedding"]) == ("sit", "sit")
    assert relative_l2(velocity(load_pipeline(tmp_path / "again").transformer, x, t.float(), y), expected) < TOLERANCE


@pytest.mark.parametrize(
    "name, arguments, flag, process, said",
    [
        ("0005000.pt", {"model": "DiT-S/2"}, None, "dit", "its args say model DiT-S/2"),
        ("0005000.pt", {"model": "SiT-S/2"}, None, "sit", "its args say model SiT-S/2"),
        ("0005000.pt", {"path_type": "Linear"}, None, "sit", "its args have path_type"),
        ("0005000.pt", {}, None, "dit", "assumed, for the file does not say; --process sit if it is a SiT"),
        ("0005000.pt", {}, "sit", "sit", "as --process says"),
        ("SiT-XL-2-256.pt", {}, None, "sit", "assumed from the file's name; --process dit if it is a DiT"),
        ("SiT-XL-2-256.pt", {}, "dit", "dit", "as --process says"),
        ("website.pt", {}, None, "dit", "assumed, for the file does not say"),
    ],
)
def test_how_the_process_is_known_is_said(name, arguments, flag, process, said, save, skipdit):
    given = ["--process", flag] if flag else []
    outcome = skipdit("convert", *save(name, **arguments), *given, "--dry-run", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["process"] == process and said in outcome.stderr


@pytest.mark.parametrize(
    "arguments, flags, said",
    [
        ({**SIT_ARGS, "path_type": "VP"}, [], "path_type VP, but what can be converted is path_type Linear"),
        ({**SIT_ARGS, "prediction": "noise"}, [], "prediction noise, but what can be converted is"),
        ({**SIT_ARGS, "prediction": "v", "path_type": "linear"}, [], "path_type linear"),
        (SIT_ARGS, ["--process", "dit"], "its args say model SiT-S/2; leave the flag out"),
        ({"model": "DiT-S/2"}, ["--process", "sit"], "its args say model DiT-S/2; leave the flag out"),
        (SIT_ARGS, ["--process", "flow"], "--process flow, allowed are dit, sit"),
        (SIT_ARGS, ["--time-embedding", "official"], "is a SiT, which has one alone"),
    ],
)
def test_what_is_refused(arguments, flags, said, save, skipdit, tmp_path):
    outcome = skipdit("convert", *save(**arguments), *flags)
    assert outcome.code == 2 and said in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_latte_is_no_sit(golden, skipdit, tmp_path):
    case = golden("latte_cond")
    heads = case.architecture.get("num_heads") or case.architecture["num_attention_heads"]
    given = ["-o", tmp_path / "out", "--process", "sit", "--num-attention-heads", heads]
    outcome = skipdit("convert", case.checkpoint, *given)
    assert outcome.code == 2 and "is of another one" in outcome.stderr


def test_a_folder_says_it_itself(sit, skipdit, tmp_path):
    shutil.rmtree(sit / "skip")
    outcome = skipdit("convert", sit, "-o", tmp_path / "again", "--process", "sit")
    assert outcome.code == 2 and "--process with a folder" in outcome.stderr


def test_it_is_called_in_python_as_generate_samples_it(sit):
    pipe = load_pipeline(sit, vae=None)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipe([3], num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="np").images
    made = generate(pipe, [3], num_inference_steps=2, guidance_scale=2.0, seed=1, decode=False).latents
    preview = made[:, :3] / (3 * made[:, :3].std() + 1e-8)
    assert abs(images - (preview / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()).max() < 1e-5
