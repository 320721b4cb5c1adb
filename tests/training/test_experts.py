"""Training one of Wan 2.2's two transformers: at its own timesteps, and with all else as it was."""

from pathlib import Path

import pytest
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.skip import add_skip_branches
from skipdit_cli.training.data.order import draw
from skipdit_cli.training.data.pixel_dataset import Batch
from skipdit_cli.training.objective.flow import loss_of, span_of
from skipdit_cli.training.objective.objective import Objective
from skipdit_cli.training.weighting import WEIGHTINGS, Weighting
from tests.support.caption_training import command, differ, losses, prepare, rename
from tests.support.tiny_training_pipelines import text_pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def experts(tmp_path) -> tuple[Path, Path]:
    """A pipeline of two transformers with branches, and data."""
    _, data = prepare(tmp_path, "wan")
    pipe = text_pipeline("wan-22")
    for transformer in (pipe.transformer, pipe.transformer_2):
        for linear in add_skip_branches(transformer).linears:
            torch.nn.init.normal_(linear.weight, std=0.02)
    save_pipeline(pipe, tmp_path / "two")
    return tmp_path / "two", data


@pytest.mark.parametrize("scheme", WEIGHTINGS)
def test_an_expert_is_drawn_its_own_timesteps_in_the_shape_of_the_whole_distribution(scheme):
    pipe, x0 = text_pipeline("wan-22"), torch.zeros(200_000, 1, 1, 1, 1)
    whole = loss_of(pipe.scheduler, Weighting(scheme))
    all_times = whole.times(draw((0, 1), x0.shape, 1000, 0.1, whole.density).t, x0)
    for expert in ("high", "low"):
        loss = loss_of(pipe.scheduler, Weighting(scheme), span=span_of(pipe, expert))
        times = loss.times(draw((0, 2), x0.shape, 1000, 0.1, loss.density).t, x0)
        expected = all_times[(all_times >= 700) == (expert == "high")]
        assert set((times >= 700).tolist()) == {expert == "high"}
        levels = torch.linspace(0.05, 0.95, 19, dtype=torch.double)
        apart = times.double().quantile(levels) - expected.double().quantile(levels)
        assert apart.abs().max() < 8, (expert, apart)


def test_what_no_weighting_draws_is_refused():
    pipe = text_pipeline("wan-22")
    far = Weighting(logit_mean=40.0, logit_std=0.1)
    assert loss_of(pipe.scheduler, far, span=span_of(pipe, "low")).density(3, torch.Generator()).shape == (3,)
    with pytest.raises(UsageError, match="draws next to no timesteps t with 700 <= t"):
        loss_of(pipe.scheduler, far, span=span_of(pipe, "high"))


def test_the_expert_is_told_what_the_pipeline_tells_it():
    pipe, seen = text_pipeline("wan-22"), {"transformer": [], "transformer_2": []}
    for part, times in seen.items():
        hook = lambda module, given, told, times=times: times.append(float(told["timestep"][0]))  # noqa: E731
        getattr(pipe, part).register_forward_pre_hook(hook, with_kwargs=True)
    pipe("a cat", height=32, width=32, num_frames=5, num_inference_steps=20, output_type="latent")
    sampled = {part: set(times) for part, times in seen.items()}
    for part, expert in (("transformer", "high"), ("transformer_2", "low")):
        seen[part].clear()
        objective = Objective(pipe, torch.device("cpu"), 0, 0.1, expert=expert)
        pixels = torch.zeros(1, 3, 5, 32, 32)
        with torch.no_grad():
            for step in range(40):
                objective(getattr(pipe, part), Batch(pixels, ["dog"], None, []), step, 0)
        edge = max if expert == "low" else min
        assert (min(seen[part]) >= 700) == (max(seen[part]) >= 700) == (edge(sampled[part]) >= 700)
        assert min(sampled[part]) < sum(seen[part]) / 40 < max(sampled[part])


@pytest.mark.parametrize("expert, skip, trunk", [("high", "skip", "transformer"), ("low", "skip_2", "transformer_2")])
def test_an_expert_is_trained_and_all_else_stays_as_it_was(skipdit, experts, tmp_path, expert, skip, trunk):
    model, data = experts
    run = (*command("wan", model, data, tmp_path / "kept"), "--expert", expert)
    assert skipdit(*run, "-o", tmp_path / "whole", "--max-train-steps", 4).code == 0
    assert differ(model, tmp_path / "whole") == {skip}
    assert f"| expert | {expert} noise ({trunk})" in (tmp_path / "whole" / "README.md").read_text()
    assert skipdit(*run, "-o", tmp_path / "parts", "--max-train-steps", 2).code == 0
    more = (*run, "-o", tmp_path / "parts", "--max-train-steps", 4, "--resume-from-checkpoint", "latest")
    wrong = skipdit(*(word if word != expert else {"high": "low", "low": "high"}[expert] for word in more))
    assert wrong.code == 2 and f"expert {expert} then" in wrong.stderr
    assert skipdit(*more).code == 0
    assert differ(tmp_path / "whole", tmp_path / "parts") == set()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    second = ["all" if word == "skip" else tmp_path / "whole" if word == model else word for word in run]
    assert skipdit(*second, "-o", tmp_path / "all", "--max-train-steps", 2).code == 0
    assert differ(tmp_path / "whole", tmp_path / "all") == {skip, trunk}


def test_both_experts_one_after_the_other_and_grids_of_both(skipdit, experts, tmp_path):
    model, data = experts
    run = ("--max-train-steps", 2, "--validation-steps", 1)
    first = skipdit(*command("wan", model, data, tmp_path / "kept"), *run, "--expert", "high", "-o", tmp_path / "one")
    assert first.code == 0 and "grid" not in first.stderr, first.stderr
    second = command("wan", tmp_path / "one", data, tmp_path / "kept")
    ran = skipdit(*second, *run, "--expert", "low", "-o", tmp_path / "two-trained")
    assert ran.code == 0 and "grid" not in ran.stderr, ran.stderr
    assert differ(model, tmp_path / "two-trained") == {"skip", "skip_2"}
    grids = [
        tmp_path / name / "samples" / f"step-00000{step}.png" for name in ("one", "two-trained") for step in range(3)
    ]
    assert all(path.is_file() for path in grids)
    assert grids[2].read_bytes() != grids[0].read_bytes() and grids[5].read_bytes() != grids[3].read_bytes()
    card = (tmp_path / "two-trained" / "README.md").read_text()
    assert "--expert high" in card and "--expert low" in card
    assert "pipeline_tag: text-to-video" in card and '"sample.gif"' in card
    pipe = load_pipeline(tmp_path / "two-trained")
    assert pipe.transformer.skip_branches.num_pairs == pipe.transformer_2.skip_branches.num_pairs == 2


def test_an_expert_is_trained_on_top_of_a_lora_of_its_own(skipdit, experts, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    model, data = experts
    pipe = load_pipeline(model)
    pipe.transformer_2.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(pipe.transformer_2))
    run = (*command("wan", model, data, tmp_path / "kept"), "--max-train-steps", 1, "--expert", "low")
    assert skipdit(*run, "-o", tmp_path / "with", "--lora", tmp_path / "lora").code == 0
    assert skipdit(*run, "-o", tmp_path / "without").code == 0
    assert losses(tmp_path / "with") != losses(tmp_path / "without")
    assert differ(model, tmp_path / "with") == {"skip_2"}


def test_two_transformers_ask_for_a_choice_and_one_takes_none(skipdit, experts, tmp_path):
    model, data = experts

    def refused(*flags, of=model) -> str:
        ran = skipdit("finetune", "-m", of, "--data", data, "-o", tmp_path / "out", *flags)
        assert ran.code == 2 and not (tmp_path / "out").exists() and ran.stderr.count("\n") == 1, ran.stderr
        return ran.stderr

    for path in (model / "transformer").glob("*.safetensors"):
        path.unlink()  # nothing of this asks for weights
    said = (
        "two transformers, of which one run trains one: give --expert high (from 0.7 of the timesteps on) or --expert"
    )
    assert said in refused()
    assert "--expert hihg but expected high or low. Did you mean 'high'?" in refused("--expert", "hihg")
    assert "has one transformer; leave it out" in refused("--expert", "low", of=tmp_path / "model")
    (model / "skip_2").rename(tmp_path / "gone")
    assert "has no skip branches to train" in refused("--expert", "low")
    rename(model, boundary_ratio=None)
    assert "two transformers with boundary_ratio None, by which it never uses one" in refused("--expert", "high")
