"""skipdit bench: which rows there are, that their figures agree with each other, what is written, what is refused."""

import json

import pytest

from skipdit_cli import CachePolicy, add_skip_branches, remove_skip_branches
from skipdit_cli.bench.cases import make_cases, make_policies
from skipdit_cli.bench.run import Bench
from skipdit_cli.errors import UsageError
from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.fitting import compiled

KEYS = {
    "case", "cache_layers", "cache_interval", "schedule", "forecast", "steps", "full_steps", "seconds", "seconds_iqr",
    "seconds_end_to_end", "speedup_vs_vanilla", "speedup_vs_skip", "limit", "measured_over_limit", "psnr", "ssim",
    "latent_rel_l2", "temporal_difference", "peak_memory_mb", "cache_mb",
}  # fmt: skip
TINY_PRESET = """
model:
  class: DiTTransformer2DModel
  config:
    num_layers: 6
    num_attention_heads: 2
    attention_head_dim: 8
    in_channels: 4
    out_channels: 8
    sample_size: 8
    num_embeds_ada_norm: 10
"""


@pytest.fixture
def skip_model(tiny_pipeline, tmp_path):
    """A pipeline folder with skip branches that do something."""
    import torch

    pipe = load_pipeline(tiny_pipeline())
    torch.manual_seed(1)
    for linear in add_skip_branches(pipe.transformer).linears:
        torch.nn.init.normal_(linear.weight, std=0.05)
    save_pipeline(pipe, tmp_path / "skip-model")
    return tmp_path / "skip-model"


QUICK = ("--steps", 6, "--rounds", 2, "--warmup", 0, "--class-labels", "1,2", "--guidance-scale", 2, "--no-exact")


def test_rows_are_complete_and_agree_with_each_other(skipdit, skip_model, tmp_path):
    done = skipdit(
        "bench", "-m", skip_model, *QUICK, "--cache-layers", "1,2", "--cache-interval", "2", "--full-steps", "2",
        "--forecast", "reuse,taylor2", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    rows = done.json["rows"]
    assert done.json["schema"] == 1
    assert all(row.keys() >= KEYS for row in rows)
    counts = {name: sum(row["case"] == name for row in rows) for name in dict.fromkeys(row["case"] for row in rows)}
    assert counts.pop("fewer-steps") >= 1
    assert counts == {"vanilla": 1, "vanilla-cache": 8, "skip": 1, "skip-cache": 8}
    model = load_pipeline(skip_model).transformer
    skip = StepFlops(model)
    for row in rows:
        if row["case"] in ("vanilla", "skip"):
            assert row["limit"] is row["psnr"] is row["ssim"] is row["cache_mb"] is row["measured_over_limit"] is None
            assert row["speedup_vs_vanilla" if row["case"] == "vanilla" else "speedup_vs_skip"] == 1
        else:
            own = row["speedup_vs_skip" if row["case"] == "skip-cache" else "speedup_vs_vanilla"]
            assert row["measured_over_limit"] == pytest.approx(own / row["limit"])
            assert row["limit"] > 1
            assert 0 < row["ssim"] <= 1
            assert row["identical"] == (row["latent_rel_l2"] == 0)
        if row["case"] == "skip-cache":
            plan = [True] * row["full_steps"] + [False] * (6 - row["full_steps"])
            assert row["limit"] == pytest.approx(skip.limit(plan, row["cache_layers"]))
            assert row["cache_mb"] > 0
            assert row["full_steps"] == (3 if row["cache_interval"] == 2 else 2)
        if row["case"] == "fewer-steps":
            assert row["steps"] == row["full_steps"] < 6
            assert row["limit"] == pytest.approx(6 / row["steps"])
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["bench.json", "bench.md", "bench.png"]
    page = (tmp_path / "out" / "bench.md").read_text()
    assert page.count("| skip-cache |") == 8
    assert "late-dense 2" in page and "| flicker |" not in page


def test_json_says_what_it_ran_on(skipdit, skip_model):
    report = skipdit("bench", "-m", skip_model, *QUICK, "--cache-interval", 3, "--json").json
    assert report["device"] == "cpu"
    assert report["dtype"] == "float32"
    assert {"python", "torch", "diffusers", "skipdit"} <= report["versions"].keys()
    assert report["batch_size"] == 2
    assert report["class_labels"] == [1, 2]
    assert report["guidance_scale"] == 2
    assert report["macs"]["skip"] > report["macs"]["vanilla"] > 0


def test_a_model_without_branches_has_no_skip_rows_and_is_told(skipdit, tiny_pipeline):
    done = skipdit("bench", "-m", tiny_pipeline(), *QUICK, "--cache-interval", 2)
    assert done.code == 0
    assert "skip-cache" not in done.stdout
    assert "No skip rows: this model has no skip branches; 'skipdit convert' adds them." in done.stdout


def test_random_weights_of_a_preset_need_no_model(skipdit, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_PRESET)
    done = skipdit(
        "bench", "--preset", tmp_path / "tiny.yaml", "--random-weights", "--cache-interval", "2", "--steps", 4,
        "--rounds", 1, "--dtype", "bfloat16", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    rows = {row["case"]: row for row in done.json["rows"]}
    assert {"vanilla", "vanilla-cache", "skip", "skip-cache", "fewer-steps"} == rows.keys()
    assert rows["skip-cache"]["psnr"] is None
    assert rows["skip-cache"]["latent_rel_l2"] > 0
    assert done.json["guidance_scale"] == 1
    assert done.json["dtype"] == "bfloat16"
    assert any("Random weights" in note for note in done.json["notes"])
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000


def test_compiling_makes_a_graph_of_a_full_and_one_of_a_reused_step(tiny_pipeline):
    pipe, graphs = load_pipeline(tiny_pipeline(num_layers=3)), []
    add_skip_branches(pipe.transformer)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    bench = Bench(pipe, [CachePolicy(1)], [0], num_inference_steps=4, guidance_scale=1.0)
    plain = bench.run(rounds=1, warmup=0)
    advanced = []
    with compiled([pipe], backend):
        rows = bench.run(rounds=2, warmup=1, advance=lambda: advanced.append(len(graphs)))
    assert len(graphs) == 6  # uncached, full and reused, of the model with and without branches
    assert set(advanced) == {6}, "compiled in a round that is timed"
    assert "forward" not in pipe.transformer.transformer_blocks[0].norm1.__dict__ and bench.warm_up_seconds > 0
    for row, other in zip(rows, plain):
        assert (row["latent_rel_l2"] or 0) == pytest.approx(other["latent_rel_l2"] or 0, rel=1e-3)


def test_interval_1_is_the_uncached_run(tiny_pipeline):
    bench = Bench(load_pipeline(tiny_pipeline()), [CachePolicy(1, 1)], [0, 1], num_inference_steps=3)
    row = next(row for row in bench.run(rounds=1, warmup=0) if row["case"] == "vanilla-cache")
    assert (row["identical"], row["psnr"], row["latent_rel_l2"], row["limit"]) == (True, None, 0, 1)


def test_levels_are_rows(skipdit, skip_model):
    steps = ("--class-labels", "1", "--guidance-scale", 1, "--steps", 15, "--rounds", 1, "--warmup", 0)
    report = skipdit("bench", "-m", skip_model, *steps, "--cache", "fast,quality", "--json").json
    rows = [row for row in report["rows"] if row["case"] == "skip-cache"]
    assert [(row["schedule"], row["cache_layers"]) for row in rows] == [("mid-dense 8", 0), ("mid-dense 10", 0)]
    stochastic = skipdit("bench", "-m", skip_model, *steps, "--cache", "fast", "--scheduler", "ddpm", "--json").json
    layers = [row["cache_layers"] for row in stochastic["rows"] if row["case"] == "skip-cache"]
    assert layers == ["1:0"]  # what ran, as generate does
    refused = skipdit("bench", "-m", skip_model, *steps, "--cache", "fast", "--cache-layers", 2)
    assert refused.code == 2 and "--cache with --cache-layers" in refused.stderr


def test_branches_are_back_after_a_bench(skip_model):
    pipe = load_pipeline(skip_model)
    branches = pipe.transformer.skip_branches
    Bench(pipe, [CachePolicy(1)], [0], num_inference_steps=2).run(rounds=1)
    assert pipe.transformer.skip_branches is branches
    remove_skip_branches(pipe.transformer)
    assert "forward" not in pipe.transformer.__dict__


def test_another_model_can_be_the_vanilla_one(skipdit, skip_model, tiny_pipeline):
    other = tiny_pipeline("other", seed=5)
    quick = [*QUICK, "--cache-interval", "2", "--json"]
    own, with_other = (skipdit("bench", "-m", skip_model, *quick, *more).json for more in ([], ["--vanilla", other]))
    distance = [
        {row["case"]: row["latent_rel_l2"] for row in report["rows"]} for report in (own, with_other)
    ]  # a model's quality is its own
    assert distance[0]["skip-cache"] == distance[1]["skip-cache"]
    assert distance[0]["vanilla-cache"] != distance[1]["vanilla-cache"]


def test_fewer_steps_cost_what_the_cached_runs_cost(tiny_dit):
    flops = StepFlops(tiny_dit())
    policies = make_policies([1], [2, 4], [10], ["reuse"], ["boundary"])
    fewer = [
        case.steps for case in make_cases(policies, 20, list(range(20, 0, -1)), flops) if case.name == "fewer-steps"
    ]
    cost = {k: (20 // k + (20 - 20 // k) * flops.reused(1) / flops.full) for k in (2, 4)}
    assert fewer == [round(cost[2]), round(cost[4])]


def test_min_speedup_missed_is_exit_3_after_the_report(skipdit, tiny_pipeline, tmp_path):
    arguments = ["bench", "-m", tiny_pipeline(), *QUICK, "--cache-interval", "2", "--json"]
    done = skipdit(*arguments, "--min-speedup", 1000, "-o", tmp_path / "out")
    assert done.code == 3
    assert "No vanilla-cache row reaches --min-speedup 1000; the best has" in done.stderr
    assert done.json["rows"]
    assert (tmp_path / "out" / "bench.json").is_file()
    done = skipdit(*arguments, "--min-psnr", 500)
    assert done.code == 3
    assert "No vanilla-cache row reaches --min-psnr 500" in done.stderr
    assert skipdit(*arguments, "--min-speedup", 0.001, "--min-psnr", 1).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cache-layers", "3"], "--cache-layers 3 leaves nothing to cache"),
        (["--cache-layers", "one"], "--cache-layers 'one' but expected integers"),
        (["--cache-interval", "0"], "--cache-interval 0 but expected 1"),
        (["--full-steps", "9"], "--full-steps 9 but the run has 4 steps"),
        (["--forecast", "crystal-ball"], "--forecast 'crystal-ball' but expected"),
        (["--cache-target", "moon"], "--cache-target 'moon' but expected"),
        (["--class-labels", "77"], "--class-labels 77 but the model has classes"),
        (["--scheduler", "dmi"], "--scheduler 'dmi'"),
        (["--random-weights"], "--random-weights, which needs --preset"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(skipdit, tiny_pipeline, tmp_path, arguments, says):
    model = tiny_pipeline()
    done = skipdit("bench", "-m", model, "--steps", 4, "-o", tmp_path / "out", *arguments)
    assert done.code == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_min_psnr_without_a_vae_is_refused(skipdit, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_PRESET)
    done = skipdit("bench", "--preset", tmp_path / "tiny.yaml", "--random-weights", "--steps", 4, "--min-psnr", 30)
    assert done.code == 2
    assert "--min-psnr, but this model has no VAE" in done.stderr


def test_nothing_to_cache_is_refused():
    with pytest.raises(UsageError, match="Got nothing to cache"):
        make_policies([1], [], [], ["reuse"], ["boundary"])


@pytest.mark.parametrize("classes", [10, None])
def test_videos_are_compared_frame_by_frame(skipdit, latte_pipeline, tmp_path, classes):
    folder = latte_pipeline(num_embeds_ada_norm=classes, in_channels=1, out_channels=2, num_layers=4)
    assert skipdit("convert", folder, "-o", tmp_path / "skip").code == 0
    quick = ("--steps", 4, "--cache-interval", 2, "--batch-size", 2, "--rounds", 1, "--no-exact", "--json")
    ran = skipdit("bench", "-m", tmp_path / "skip", *quick, "--forecast", "reuse")
    assert ran.code == 0, ran.stderr
    cached = next(row for row in ran.json["rows"] if row["case"] == "skip-cache")
    assert cached["psnr"] > 10 and 0 < cached["ssim"] <= 1 and 0 < cached["temporal_difference"] < 1
    config = json.loads((folder / "transformer" / "config.json").read_text())
    tokens = (config["sample_size"] // config["patch_size"]) ** 2 * config["video_length"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    guided = 1 if classes is None else 2
    assert cached["cache_mb"] == guided * 2 * tokens * width * 4 / 1e6  # one boundary a branch of guidance
