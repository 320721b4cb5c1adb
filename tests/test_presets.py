"""Presets: every shipped file fits the real commands and classes; a wrong one is refused by name."""

import pytest
from typer.main import get_command

from skipdit_cli.app import app
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset, preset_folder, preset_names

SIZES = {"s": (12, 384), "b": (12, 768), "l": (24, 1024), "xl": (28, 1152)}


@pytest.fixture
def write(tmp_path):
    def to(text: str, name: str = "own.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return to


def test_every_size_is_there():
    expected = {f"dit-{size}-{patch}-{pixels}" for size in SIZES for patch in (2, 4, 8) for pixels in (256, 512)}
    official = {f"skip-dit-{kind}-n{n}" for kind in ("c2i", "c2v", "ucf101") for n in range(2, 7)}
    official |= {f"skip-dit-t2v-n{n}-700-50" for n in (2, 3, 4)}
    assert expected | official | {"digits"} <= set(preset_names())


def test_all_presets_fit(skipdit):
    ended = skipdit("presets", "check", "--json")
    assert ended.code == 0, ended.stderr
    assert ended.json["checked"] == preset_names() and ended.json["problems"] == []


def test_the_experiment_of_a_preset_is_checked(skipdit, write):
    path = write("about: a\nsource: b\nexperiment: {study: scaling, grid: grid.yaml, trian_steps: 1}")
    ended = skipdit("presets", "check", path)
    assert ended.code == 3 and "there is no" in ended.stderr + ended.stdout
    path = write("about: a\nsource: b\nexperiment: {study: scaling, trian_steps: 1}")
    ended = skipdit("presets", "check", path)
    assert ended.code == 3 and "Did you mean 'train_steps'" in ended.stderr + ended.stdout


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_is(name):
    preset = load_preset(name)
    assert preset.about and preset.source
    head = (preset_folder() / f"{name}.yaml").read_text().splitlines()[0]
    assert head.startswith("# skipdit ") and (f"--preset {name}" in head or f"--sweep {name}" in head)


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_are_those_of_the_dit_repository(size):
    blocks, width = SIZES[size]
    for patch in (2, 4, 8):
        for pixels in (256, 512):
            config = load_preset(f"dit-{size}-{patch}-{pixels}").model["config"]
            assert config["num_layers"] == blocks
            assert config["num_attention_heads"] * config["attention_head_dim"] == width
            assert (config["patch_size"], config["sample_size"]) == (patch, pixels // 8)
            assert (config["in_channels"], config["out_channels"]) == (4, 8)
            assert config["norm_eps"] == 1e-6


def test_a_size_has_the_stated_parameters_and_multiply_adds():
    from diffusers import DiTTransformer2DModel

    from skipdit_cli.planning.flops import StepFlops, meta_transformer

    preset = load_preset("dit-s-2-256")
    model = meta_transformer(DiTTransformer2DModel, preset.model["config"])
    embedder = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
    parameters = sum(p.numel() for p in model.parameters()) - 11 * embedder
    assert f"{parameters / 1e6:.0f} M parameters" in preset.about
    assert f"{StepFlops(model).vanilla / 1e9:.2f} GMACs" in preset.about


OFFICIAL = {
    "skip-dit-c2v-n{}": dict(zip(range(2, 7), (107, 142, 160, 170, 178))),
    "skip-dit-ucf101-n{}": dict(zip(range(2, 7), (22, 29, 33, 34, 36))),
    "skip-dit-t2v-n{}-700-50": {2: 17, 3: 22, 4: 25},
}


@pytest.mark.parametrize(
    ("name", "interval", "reused"),
    [(name.format(n), n, count) for name, counts in OFFICIAL.items() for n, count in counts.items()],
)
def test_the_official_video_schedules_reuse_as_many_steps_as_the_official_code(name, interval, reused):
    from skipdit_cli.commands.parsing import cache_policy
    from skipdit_cli.models import default_scheduler
    from skipdit_cli.sampling.cache_settings import CacheSettings

    preset = load_preset(name)
    flags = preset.flags["sample"]
    assert flags["cache-interval"] == str(interval)
    scheduler = default_scheduler(preset.model["class"])
    scheduler.set_timesteps(int(flags["num-inference-steps"]))
    settings = CacheSettings(
        cache_layers=flags["cache-layers"], cache_interval=interval, cache_window=flags["cache-window"]
    )
    policy = cache_policy(settings, int(flags["num-inference-steps"]))
    plan = policy.plan(scheduler.timesteps.tolist())
    assert plan.count(False) == reused
    assert f"Expected: {reused} of {len(plan)} steps" in (preset_folder() / f"{name}.yaml").read_text()


def test_hunyuan_dit_reuses_as_many_steps_as_the_official_code():
    from diffusers import DDPMScheduler

    from skipdit_cli.commands.parsing import cache_policy
    from skipdit_cli.sampling.cache_settings import CacheSettings

    flags = load_preset("skip-hunyuan-dit-n2").flags["sample"]
    scheduler = DDPMScheduler(steps_offset=1)  # as that of the hub's pipeline: 991, 981 .. 1
    scheduler.set_timesteps(int(flags["num-inference-steps"]))
    for interval, reused in zip(range(2, 7), (33, 44, 50, 52, 55)):
        settings = CacheSettings(
            cache_layers=flags["cache-layers"], cache_interval=interval, cache_window=flags["cache-window"]
        )
        policy = cache_policy(settings, int(flags["num-inference-steps"]))
        assert policy.plan(scheduler.timesteps.tolist()).count(False) == reused
    assert (flags["cache-layers"], flags["cache-interval"]) == ("1", "2")


def test_flags_are_read_as_typed(write):
    path = write("sample:\n  cache-window: 1000:20\n  rate: 1e-4\n  labels: [1, 2]\n  flip: true\n  none: null\n")
    given = {"cache-window": "1000:20", "rate": "1e-4", "labels": ["1", "2"], "flip": "true"}
    assert load_preset(path).flags == {"sample": given}


def test_numbers_of_a_model_are_numbers(write):
    config = load_preset(write("model: {class: A, config: {a: 1e-6, b: 1.5E+3, c: 7, d: .5, e: 1e}}")).model["config"]
    assert config == {"a": 1e-6, "b": 1500.0, "c": 7, "d": 0.5, "e": "1e"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("smaple: {seed: 1}", "unknown key 'smaple'. Did you mean 'sample'"),
        ("sample: {sede: 1}", "unknown key 'sample: sede'. Did you mean 'seed'"),
        ("sample: {json: true}", "unknown key 'sample: json'"),
        ("sample: 3", "expected flags and their values"),
        ("sample: {seed: {a: 1}}", "expected one value or a list"),
        ("- a", "holds a list"),
        ("", "holds a NoneType"),
        ("a: [", "is not readable YAML"),
        ("model: DiT", "has a 'model'"),
        ("model: {class: A}", "has a 'model'"),
        ("model: {class: A, config: {}, scheduler: 1}", "has a 'model'"),
    ],
)
def test_a_wrong_file_is_refused(write, text, says):
    with pytest.raises(UsageError, match=says):
        load_preset(write(text), {"sample": {"seed"}, "bench": {"steps"}})


def test_a_missing_preset_names_the_nearest(skipdit):
    ended = skipdit("presets", "show", "dit-xl2-256")
    assert ended.code == 2 and "Did you mean 'dit-xl-2-256'?" in ended.stderr


def test_list_names_all(skipdit):
    assert [entry["name"] for entry in skipdit("presets", "list", "--json").json["presets"]] == preset_names()
    about = load_preset("dit-xl-2-256").about
    assert ["dit-xl-2-256", *about.split()] in [
        line.split() for line in skipdit("presets", "list").stdout.splitlines()
    ]


def test_show_tells_where_each_value_comes_from(skipdit):
    shown = skipdit("presets", "show", "dit-xl-2-256", "--json", env={"SKIPDIT_FINETUNE_EMA_DECAY": "0.5"}).json
    flags = shown["flags"]["finetune"]
    assert flags["learning-rate"] == {"value": "1e-4", "from": "preset"}
    assert flags["ema-decay"] == {"value": "0.5", "from": "environment"}
    assert flags["lr-warmup-steps"] == {"value": 0, "from": "default"}
    text = skipdit("presets", "show", "dit-xl-2-256").stdout
    assert text.startswith("# skipdit bench --preset dit-xl-2-256") and "--learning-rate" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("finetune: {learning-rate: fast}", "finetune: Invalid value for '--learning-rate'"),
        ("finetune: {learning_rate: 1}", "Did you mean 'learning-rate'"),
        ("model: {class: DiTTransformer3DModel, config: {}}", "diffusers has no class 'DiTTransformer3DModel'"),
        ("model: {class: DiTTransformer2DModel, config: {num_layer: 3}}", "Did you mean 'num_layers'"),
        ("weights: nowhere", "not in the package"),
    ],
)
def test_check_finds_what_would_stop_a_run(skipdit, write, text, says):
    ended = skipdit("presets", "check", write(text), "dit-s-2-256")
    assert ended.code == 3 and says in ended.stdout
    assert ended.stderr == "Error: 1 of 2 presets do not fit.\n"


def test_every_command_can_be_set_by_a_preset_except_presets_itself():
    commands = get_command(app).commands
    without = {name for name, command in commands.items() if not any(p.name == "preset" for p in command.params)}
    assert without <= {"presets", "env", "guide", "info", "demo", "convert", "evaluate"}


@pytest.fixture
def plan(tiny_pipeline, tmp_path):
    """The file of a plan for a tiny model of six blocks."""
    from skipdit_cli import CachePolicy, load_pipeline
    from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
    from skipdit_cli.planning.searching.candidate import Candidate
    from skipdit_cli.sampling.schedulers import Sampler

    candidate = Candidate(Sampler("dpm++", "lu"), 6, CachePolicy((1, 0), full_steps=(0, 1, 3)))
    made_for = make_made_for(load_pipeline(tiny_pipeline()), candidate, 1.5, 3.5, {"psnr_exact": 38.5})
    save_plan(Plan(candidate, made_for), tmp_path / "plan.yaml")
    return tmp_path / "plan.yaml"


def test_a_plan_is_a_preset_to_show_and_to_check(skipdit, plan):
    shown = skipdit("presets", "show", plan, "--json").json
    assert shown["made_for"]["cost"] == 3.5 and shown["made_for"]["measured"] == {"psnr_exact": 38.5}
    assert shown["flags"]["sample"]["full-steps"] == {"value": "0,1,3", "from": "preset"}
    assert skipdit("presets", "check", plan).code == 0


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("0,1,3", "0,1,9", "has the full step 9"),
        ("  steps: 6", "  stpes: 6", "Did you mean 'steps'"),
        ("  steps: 6", "  steps: 7", "was made for steps '7', but its flags say '6'"),
        ("sample:", "bench:", "has the key 'bench', which no plan has"),
    ],
)
def test_check_finds_what_was_edited_in_a_plan(skipdit, plan, before, after, says):
    plan.write_text(plan.read_text().replace(before, after, 1))
    ended = skipdit("presets", "check", plan)
    assert ended.code == 3 and says in ended.stdout, ended.stdout
