"""Study smoothness: directions, surfaces, Jacobians, and a run of the whole study at toy size."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from skipdit_cli.skip import add_skip_branches
from skipdit_cli.studies.smoothness import spectral, surface
from skipdit_cli.studies.smoothness.directions import Plane, direction
from skipdit_cli.studies.smoothness.smoothness_findings import find
from skipdit_cli.trunk import known_trunk
from tests.support.tiny_transformers import perturbed


@pytest.fixture
def call():
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(3, 1, 8, 8), "timestep": torch.tensor(300).expand(3)}
    return surface.Call((), {**inputs, "class_labels": torch.tensor([1, 2, 3]), "return_dict": False})


@pytest.fixture
def skip_dit(tiny_dit):
    model = tiny_dit(num_layers=4)
    perturbed(add_skip_branches(model))
    return model


def test_directions_have_the_norms_of_rows_and_are_equal_for_shared_names(tiny_dit, skip_dit):
    vanilla, branched = Plane(tiny_dit(num_layers=4), 3), Plane(skip_dit, 3)
    extra = set(branched.weights) - set(vanilla.weights)
    assert extra and all(name.startswith("skip_branches.") for name in extra)
    assert set(Plane(skip_dit, 3, with_branches=False).weights) == set(vanilla.weights)
    for one, other in zip(vanilla.directions, branched.directions):
        assert all(torch.equal(one[name], other[name]) for name in one)
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    norms = direction("a", weight, 0).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, weight.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    assert not torch.equal(direction("a", weight, 0), direction("b", weight, 0))
    assert not torch.equal(direction("a", weight, 0), direction("a", weight, 1))
    assert not direction("bias", torch.ones(6), 0).any()


def test_the_middle_of_a_surface_is_exact_and_weights_are_restored(skip_dit, call):
    before = {name: weight.clone() for name, weight in skip_dit.state_dict().items()}
    trunk, values = known_trunk(skip_dit), surface.grid(0.3, 3)
    assert values == [-0.3, 0.0, 0.3]
    (all_weights,) = surface.measure_surfaces(skip_dit, trunk, [call], values, 0)
    (trunk_alone,) = surface.measure_surfaces(skip_dit, trunk, [call], values, 0, block=1, with_branches=False)
    for each in (all_weights, trunk_alone):
        assert each.cosine[1][1] == 1.0 and each.relative_l2[1][1] == 0.0
        others = [each.cosine[row][column] for row in range(3) for column in range(3) if (row, column) != (1, 1)]
        assert max(others) < 1 and len(set(others)) == 8
    assert all(torch.equal(weight, before[name]) for name, weight in skip_dit.state_dict().items())
    reference = surface.features(skip_dit, trunk, call, -1)
    with Plane(skip_dit, 0) as plane:
        plane.move(-0.3, 0.3)
        corner = surface.features(skip_dit, trunk, call, -1)
    assert all_weights.cosine[2][0] == surface.cosine(corner, reference)
    assert all_weights.relative_l2[2][0] == surface.relative_l2(corner, reference)


def test_weights_are_restored_after_an_error(skip_dit):
    before = {name: weight.clone() for name, weight in skip_dit.state_dict().items()}
    with pytest.raises(ValueError, match="on the way"), Plane(skip_dit, 0) as plane:
        plane.move(1.0, 1.0)
        raise ValueError("on the way")
    assert all(torch.equal(weight, before[name]) for name, weight in skip_dit.state_dict().items())


def test_the_area_above_a_level_is_interpolated():
    assert surface.share_above([[1.0, 1.0], [1.0, 1.0]], 0.9) == 1.0
    assert surface.share_above([[0.0, 1.0], [0.0, 1.0]], 0.5) == pytest.approx(0.5, abs=0.04)


def dense_norms(function, x):
    """Return the largest singular value of the Jacobian of each sample, from the whole matrix."""
    jacobian = torch.autograd.functional.jacobian(function, x, vectorize=True)
    samples, values = len(x), x[0].numel()
    matrices = jacobian.reshape(samples, -1, samples, values)
    return torch.stack([torch.linalg.matrix_norm(matrices[each, :, each], 2) for each in range(samples)])


def test_norms_of_jacobians_are_those_of_dense_ones(tiny_dit, call):
    model = tiny_dit(num_layers=3, sample_size=4)
    perturbed(add_skip_branches(model))
    model.double()
    kwargs = {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in call.kwargs.items()}
    kwargs["hidden_states"] = x = kwargs["hidden_states"][..., :4, :4].double()
    call, trunk = surface.Call((), kwargs), known_trunk(model)
    first, _, last = spectral.block_calls(model, trunk, call)
    norms = spectral.block_norms(model, trunk, call)
    with sdpa_kernel(SDPBackend.MATH):
        dense = dense_norms(first.run, first.x)
        computed = spectral.jacobian_norm(first.run, first.x, iterations=2000, tolerance=1e-13)
        torch.testing.assert_close(computed, dense, rtol=1e-8, atol=0)
        assert norms["block"][0] == pytest.approx(float(dense.mean()), rel=1e-2)

        def fused(x):
            return last.run(model.skip_branches(x, first.output, 0))

        torch.testing.assert_close(fused(last.x), last.output, rtol=1e-12, atol=1e-12)
        assert norms["fused"][2] == pytest.approx(float(dense_norms(fused, last.x).mean()), rel=1e-2)
        assert norms["fused"][:2] == [None, None]

        def predict(x):
            return model(**{**kwargs, "hidden_states": x})[0][:, :1]

        assert spectral.model_norm(model, call) == pytest.approx(float(dense_norms(predict, x).mean()), rel=1e-2)


def test_norms_of_halves_by_both_methods(skip_dit):
    for norms in spectral.half_norms(skip_dit.skip_branches):
        assert norms["x"] == pytest.approx(norms["x_power"], rel=1e-6)
        assert norms["s"] == pytest.approx(norms["s_power"], rel=1e-6)


MODEL = """about: A tiny model.
source: tests.
model:
  class: DiTTransformer2DModel
  config: {num_layers: 4, num_attention_heads: 1, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10}
train: {data: digits, skip-branches: false}
finetune: {data: digits}
"""
EXPERIMENT = """about: A toy.
source: tests.
experiment: {study: smoothness, model: %s, preset: %s, stage_1_steps: 1, stage_2_steps: 1, train_batch_size: 4,
  samples: 2, num_inference_steps: 4, guidance_scale: 1.5, steps: [1, 4], radius: 0.2, points: 3, directions: 1,
  level: 0.9, jacobian_samples: 1}
"""


def test_the_study_at_toy_size(skipdit, tmp_path):
    preset, toy, base = tmp_path / "model.yaml", tmp_path / "toy.yaml", tmp_path / "base"
    preset.write_text(MODEL)
    toy.write_text(EXPERIMENT % (base, preset))
    assert skipdit("train", "--preset", preset, "--max-train-steps", 1, "--train-batch-size", 4, "-o", base).code == 0
    ended = skipdit("study", "smoothness", "--preset", toy, "--seeds", 1, "-o", tmp_path / "run", "--json")
    assert ended.code == 0, ended.stderr
    numbers = ended.json["numbers"]
    assert set(numbers["surfaces"]) == {"vanilla", "vanilla-longer", "skip-dit", "skip-dit, trunk"}
    for file in (tmp_path / "run" / "measured").glob("surface-*.json"):
        for each in json.loads(file.read_text())["value"]:
            assert each["cosine"][1][1] == 1.0 and each["relative_l2"][1][1] == 0.0
    (skip,) = numbers["similarity"]["skip-dit"]
    assert [row[0] for row in skip["cached"]] == pytest.approx([1.0] * 4, abs=1e-6)
    assert skip["cached"][1][1] is None and skip["cached"][3][1] < 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Perturbation surface at step 1" in page and 'class="contour"' in page
    assert "one training seed does not say" in ended.json["lead"]


@pytest.mark.parametrize(
    ("old", "new"), [("points: 3", "points: 4"), ("[1, 4]", "[5]"), ("directions: 1", "directions: 0")]
)
def test_a_grid_without_a_middle_and_steps_that_do_not_exist_are_refused(skipdit, tmp_path, old, new):
    toy = tmp_path / "toy.yaml"
    toy.write_text((EXPERIMENT % ("base", "digits")).replace(old, new))
    ended = skipdit("study", "smoothness", "--preset", toy, "-o", tmp_path / "run")
    assert ended.code == 2 and new.split(": ")[-1] in ended.stderr and not (tmp_path / "run").exists()


def test_the_answer_is_that_of_paired_differences_and_invents_no_number():
    def flat(value: float) -> list[dict]:
        return [{"cosine": [[value] * 3] * 3, "relative_l2": [[0.0] * 3] * 3}]

    settings = SimpleNamespace(steps=(1,), radius=0.2, points=3, level=0.9, num_inference_steps=1)
    norms = {"halves": [], "blocks": [{"block": [1.0], "fused": [None]}], "model": [1.0]}
    similar = {"successive": None, "cached": [[1.0]]}  # of a run of one step
    for skip, says in (((0.7, 0.7), "is smoother"), ((0.7, 0.5), "inside the spread"), ((0.5, 0.5), "less smooth")):
        surfaces = {
            "vanilla-longer": {(seed, 0): flat(0.6 + seed / 100) for seed in (0, 1)},
            "skip-dit": {(seed, 0): flat(value) for seed, value in enumerate(skip)},
        }
        found = find(settings, surfaces, *({"skip-dit": [each] * 2} for each in (similar, norms)))
        assert says in found.lead
        assert "are - and 1.0000 ±0.0000 in Skip-DiT" in found.details[0]
