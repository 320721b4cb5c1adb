"""Where a command's values come from: typed > record (``--from``) > environment > plan > preset > default."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from skipdit_cli.media import read_metadata, save_png
from skipdit_cli.presets import load_preset, preset_names
from skipdit_cli.version import versions_of_results
from tests.support.tiny_pipelines import write_pipeline

THREE_SEVEN = ("--preset", "digits", "--class-labels", "3,7", "--steps", 3)


def settings_of(path: Path) -> dict:
    return read_metadata(path)["settings"]


@pytest.fixture
def record(tmp_path):
    """``record(name=value)``: a picture that says it was made of the embedded digits with these settings, too."""

    def write(name: str = "stranger.png", **settings) -> Path:
        made = {"weights": "digits", "class_labels": "3", "num_inference_steps": 2, **settings}
        chunk = PngInfo()  # and not save_png, which writes no NaN
        chunk.add_itxt("skipdit", json.dumps({"version": "0.1.0", "settings": made}))
        Image.new("RGB", (8, 8)).save(tmp_path / name, pnginfo=chunk)
        return tmp_path / name

    return write


@pytest.fixture
def preset(tmp_path):
    def write(text: str, name: str = "own.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def kinds_of_presets() -> list[str]:
    """One preset of each model class and set of ``sample:`` keys; those left out differ in numbers alone."""
    found = {}
    for name in preset_names():
        preset = load_preset(name)
        if "sample" in preset.flags:
            labelled = preset.model["config"].get("num_embeds_ada_norm")
            found.setdefault((preset.model["class"], labelled, *preset.flags["sample"]), name)
    return sorted(found.values())


@pytest.fixture
def model_for(tiny_dit, tiny_latte, text_pipeline, tmp_path):
    """The flags that name a tiny model of the kind that a preset is for, and give it a text if need be."""

    def flags(name: str) -> tuple:
        preset = load_preset(name)
        kind, classes = preset.model["class"], preset.model["config"].get("num_embeds_ada_norm")
        if preset.weights:
            return ()
        if kind == "LatteTransformer3DModel":
            return ("-m", text_pipeline, "--prompt", "a cat")
        if kind == "HunyuanDiT2DModel":
            from tests.support.tiny_pipelines import PIPELINES, build

            build("hunyuan-dit").save_pretrained(tmp_path / "hunyuan")
            return ("-m", tmp_path / "hunyuan", "--prompt", "a cat", *PIPELINES["hunyuan-dit"][1])
        if kind == "DiTTransformer2DModel":
            tiny = tiny_dit(num_layers=10, in_channels=4, out_channels=8, num_embeds_ada_norm=classes)
        else:
            tiny = tiny_latte(num_embeds_ada_norm=classes)
        return ("-m", write_pipeline(tmp_path / "model", tiny))

    return flags


@pytest.mark.parametrize("name", kinds_of_presets())
def test_what_a_preset_and_flags_made_is_made_again(name, model_for, skipdit, tmp_path):
    kind = load_preset(name).model["class"]
    suffix = "gif" if "Latte" in kind else "png"
    overruled = ("--steps", 4, "--scheduler", "ddim", "--seed", 0)  # the last two are defaults, or may be
    if "class-labels" in load_preset(name).flags["sample"]:
        overruled += ("--class-labels", "3,7")
    for cached in (("--cache-layers", 1), ("--cache-interval", 1) if "skip" in name else ()):
        first, again = tmp_path / f"first.{suffix}", tmp_path / f"again.{suffix}"
        made = skipdit("sample", *overruled, "--preset", name, *model_for(name), *cached, "-o", first, "--overwrite")
        assert made.code == 0, made.stderr
        assert settings_of(first)["num_inference_steps"] == 4 and "preset" not in settings_of(first)
        for how in ((), ("--preset", "digits")):
            env = {"SKIPDIT_SAMPLE_SEED": "5", "SKIPDIT_SAMPLE_CACHE_LAYERS": "2"}
            replayed = skipdit("sample", *how, "--from", first, "-o", again, "--overwrite", env=env)
            assert replayed.code == 0, replayed.stderr
            assert again.read_bytes() == first.read_bytes()
            if suffix == "gif":
                for beside in (".json", ".png"):
                    assert again.with_suffix(beside).read_bytes() == first.with_suffix(beside).read_bytes()


def test_flags_win_over_a_record_before_it_and_after_it(skipdit, tmp_path):
    first = tmp_path / "a.png"
    assert skipdit("sample", *THREE_SEVEN, "--cache-layers", 1, "-o", first).code == 0
    assert settings_of(first)["weights"] == "digits" and "model" not in settings_of(first)
    for number, order in enumerate([("--seed", 1, "--from", first), ("--from", first, "--seed", 1)]):
        out = tmp_path / f"{number}.png"
        assert skipdit("sample", *order, "-o", out).code == 0
        assert settings_of(out) == {**settings_of(first), "seed": 1}
    ended = skipdit("sample", "--from", first, "--steps", 50, "--full-steps", 1, "-o", tmp_path / "c.png", "--json")
    assert ended.json["settings"]["num_inference_steps"] == 50 and ended.json["cache"]["reused_steps"] == 49
    once = settings_of(tmp_path / "c.png")
    assert once["full_steps"] == "1" and "cache_interval" not in once


def test_a_rule_for_the_full_steps_takes_back_the_other_of_a_preset_or_a_record(skipdit, record, preset, tmp_path):
    own = preset("sample: {cache-layers: 1, cache-interval: 3, cache-window: 900:50}")
    made = record(cache_layers=1, cache_interval=3, cache_window="900:50")
    for source in (("--preset", own, *("-m", load_preset("digits").weights_path)), ("--from", made)):
        typed = ("--full-steps", "0,2", "--class-labels", 1, "--steps", 3)
        ended = skipdit("sample", *source, *typed, "-o", tmp_path / "a.png", "--overwrite", "--json")
        assert ended.code == 0, ended.stderr
        assert ended.json["cache"]["reused_steps"] == 1


def test_a_model_typed_in_one_way_takes_back_one_set_in_the_other(skipdit, preset, converted):
    folder = converted()
    own = preset("info: {model: nowhere}")
    for given in ({"env": {"SKIPDIT_INFO_MODEL": "nowhere"}}, {}):
        ended = skipdit("info", folder, *(() if given else ("--preset", own)), "--json", **given)
        assert ended.code == 0 and ended.json["attached"], ended.stderr
    assert skipdit("info", folder, "-m", folder).code == 2


def test_what_a_record_overrules_is_said(skipdit, record, tmp_path):
    ended = skipdit("sample", "--preset", "digits", "--from", record(), "-o", tmp_path / "a.png")
    assert "preset digits says --class-labels, --num-inference-steps, --guidance-scale" in ended.stderr
    made = settings_of(tmp_path / "a.png")
    assert (made["class_labels"], made["num_inference_steps"], made["guidance_scale"]) == ("3", 2, 4.0)
    ended = skipdit("sample", "--from", tmp_path / "a.png", "-o", tmp_path / "b.png", env={"SKIPDIT_SAMPLE_SEED": "0"})
    assert ended.code == 0 and "says" not in ended.stderr


def test_a_switch_of_a_preset_is_turned_off_by_typing(skipdit, preset, record, tmp_path):
    own = preset("sample: {vae-tiling: true}\nconvert: {verify: false, dry-run: true}")
    out = ("-o", tmp_path / "a.png", "--overwrite")
    for source in (("--preset", own), ("--from", record(vae_tiling=True))):
        run = ("sample", *source, *("-m", load_preset("digits").weights_path), "--class-labels", 1, "--steps", 2, *out)
        assert "--vae-tiling" in skipdit(*run).stderr
        assert skipdit(*run, "--no-vae-tiling").code == 0
    ended = skipdit("convert", load_preset("digits").weights_path, "--preset", own, "--verify", "--no-dry-run", "-o",
                    tmp_path / "converted", "--json")  # fmt: skip
    assert ended.json["bitwise_equal"] and not ended.json["dry_run"]


# Records from strangers, and of older versions


def test_a_record_says_neither_where_to_write_nor_what_to_read(skipdit, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    secret, kept = tmp_path / "secret.txt", tmp_path / "kept.png"
    secret.write_text("a secret")
    kept.write_text("kept")
    stranger = record(
        output=str(kept), overwrite=True, npz="a.npz", prompts_file=str(secret), push_to_hub="a/b", private=True,
        json=True, debug=True, from_file=str(kept), cpu_offload="model", local_files_only=False, unheard_of=1,
    )  # fmt: skip
    ended = skipdit("sample", "--from", stranger, "-o", "mine.png")
    assert ended.code == 0, ended.stderr
    for name in ("output", "overwrite", "npz", "prompts_file", "push_to_hub", "private", "json", "debug", "from_file"):
        assert name in ended.stderr.split("which --from does not take")[0]
    assert kept.read_text() == "kept" and sorted(path.name for path in tmp_path.iterdir()) == [
        "kept.png", "mine.png", "secret.txt", "stranger.png"
    ]  # fmt: skip
    assert "secret" not in (tmp_path / "mine.png").read_bytes().decode("latin1")
    assert skipdit("sample", "--from", stranger, "-o", kept).code == 2 and kept.read_text() == "kept"


@pytest.fixture
def no_hub(monkeypatch):
    """Whoever asks the hub fails loudly."""
    import huggingface_hub

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    for name in ("hf_hub_download", "snapshot_download", "model_info"):
        monkeypatch.setattr(huggingface_hub, name, asked)
    monkeypatch.setattr("skipdit_cli.models.hub.answers", asked)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "facebook/DiT-XL-2-256", "weights": None},
        {"model": "facebook/DiT-XL-2-256@main", "weights": None},
        {"model": "https://example.com/model", "weights": None},
        {"vae": "stabilityai/sd-vae-ft-mse"},
        {"vae": "maxin-cn/Latte-1/vae_temporal_decoder"},
        {"lora": "a/lora"},
    ],
)
def test_what_would_be_fetched_has_to_be_typed(skipdit, record, preset, tmp_path, monkeypatch, no_hub, settings):
    monkeypatch.chdir(tmp_path)
    (name, value), *_ = settings.items()
    own = preset(f"weights: digits\nsample: {{{name}: '{value}'}}")
    for source in (("--from", record(**settings)), ("--preset", own)):
        ended = skipdit("sample", *source, "-o", "a.png")
        assert ended.code == 2 and f"give --{name} {value}" in ended.stderr, ended.stderr
    assert not (tmp_path / "a.png").exists()


def test_a_revision_goes_with_what_is_fetched(skipdit, record, tiny_pipeline, tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    stranger = record(model="a/b", weights=None, revision="main")
    ended = skipdit("sample", "--from", stranger, "-m", "a/b", "-o", "a.png")
    assert ended.code == 2 and "give --revision main" in ended.stderr
    ended = skipdit("sample", "--from", stranger, "-m", tiny_pipeline(), "-o", "a.png")
    assert ended.code == 0 and "revision" not in settings_of(tmp_path / "a.png"), ended.stderr


def test_other_commands_ask_for_it_too(skipdit, preset, tmp_path, no_hub):
    cases = {
        "convert": ("model", "vae", "text-from"),
        "bench": ("model", "vanilla", "lora"),
        "finetune": ("model", "lora"),
        "train": ("vae",),
        "info": ("model",),
    }
    for command, flags in cases.items():
        for flag in flags:
            ended = skipdit(command, "--preset", preset(f"{command}: {{{flag}: a/b}}"))
            assert ended.code == 2 and f"give --{flag} a/b" in ended.stderr, ended.stderr


def test_a_folder_that_a_record_or_preset_names_is_used(skipdit, record, preset, tiny_pipeline, tmp_path):
    folder = tiny_pipeline()
    for source in (
        ("--from", record(model=str(folder), weights=None)),
        ("--preset", preset(f"sample: {{model: {folder}, steps: 2, class-labels: '3'}}")),
    ):
        ended = skipdit("sample", *source, "-o", tmp_path / "a.png", "--overwrite")
        assert ended.code == 0 and settings_of(tmp_path / "a.png")["model"] == str(folder), ended.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": "1"}, "expected a whole number"),
        ({"seed": 1.5}, "expected a whole number"),
        ({"seed": True}, "expected a whole number"),
        ({"seed": -1}, "Got --seed -1"),
        ({"num_inference_steps": 0}, "--num-inference-steps 0"),
        ({"guidance_scale": "4"}, "expected a number"),
        ({"guidance_scale": float("nan")}, "expected a"),  # which JSON has not
        ({"guidance_scale": float("inf")}, "expected a"),
        ({"guidance_scale": 10**400}, "expected a number"),
        ({"fps": 1e9}, "--fps 1e+09"),
        ({"vae_tiling": 1}, "expected true or false"),
        ({"class_labels": [3]}, "expected a text"),
        ({"pipeline_arg": {"a": 1}}, "expected a list of texts"),
        ({"prompt": [1]}, "expected a list of texts"),
        ({"scheduler": {"a": 1}}, "expected a text"),
        ({"scheduler": "nothing"}, "nothing"),
        ({"weights": "../digits"}, "is not one of digits, digits-video"),
        ({"weights": ["digits"]}, "expected a text"),
    ],
)
def test_a_recorded_value_of_another_kind_is_refused(skipdit, record, tmp_path, wrong, says):
    ended = skipdit("sample", "--from", record(**wrong), "-o", tmp_path / "a.png")
    assert ended.code == 2 and ended.exception is None and says in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and not (tmp_path / "a.png").exists()


def test_a_file_that_says_nothing_of_sampling_is_refused(skipdit, tmp_path):
    for number, metadata in enumerate(({"digit": 3}, {"settings": {}}, {"settings": []})):
        save_png(Image.new("RGB", (8, 8)), tmp_path / f"{number}.png", metadata)
        ended = skipdit("sample", "--from", tmp_path / f"{number}.png", "--preset", "digits", "-o", tmp_path / "a.png")
        assert ended.code == 2 and "does not say how it was" in ended.stderr


def test_records_of_older_versions_are_made_again(skipdit, record, tmp_path):
    ended = skipdit("sample", "--from", record(weights=None, preset="digits"), "-o", tmp_path / "a.png")
    assert ended.code == 0 and settings_of(tmp_path / "a.png")["weights"] == "digits", ended.stderr
    assert settings_of(tmp_path / "a.png")["num_inference_steps"] == 2  # and not the preset's
    assert read_metadata(tmp_path / "a.png")["versions"] == versions_of_results()
    ended = skipdit("sample", "--from", record(weights=None, preset="own.yaml"), "-o", tmp_path / "b.png")
    assert ended.code == 2 and "give the --preset it was made with, or -m" in ended.stderr
    again = skipdit("sample", "--preset", "digits", "--from", record(weights=None, preset="own.yaml"), "-o",
                    tmp_path / "b.png")  # fmt: skip
    assert again.code == 0 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# Presets


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("sample", flag) for flag in ("output", "overwrite", "npz", "prompts-file")),
        *(("sample", flag) for flag in ("json", "debug", "from", "preset")),
        *(("convert", flag) for flag in ("output", "overwrite", "push-to-hub", "private")),
        *(("finetune", flag) for flag in ("output", "overwrite", "push-to-hub", "private", "cache-latents")),
        *(("train", flag) for flag in ("output", "push-to-hub", "private")),
        *(("bench", flag) for flag in ("output", "overwrite", "update-card", "prompts-file")),
        ("demo", "output"),
    ],
)  # fmt: skip
def test_a_preset_that_says_where_to_write_is_refused_by_name(skipdit, preset, tmp_path, command, flag):
    own = preset(f"{command}: {{{flag}: 'true'}}")
    run = command if command != "demo" else "sample"
    ended = skipdit(run, "--preset", own)
    assert ended.code == 2 and f"'{command}: {flag}'" in ended.stderr, ended.stderr
    assert list(tmp_path.iterdir()) == [own]


def test_two_names_of_one_flag_are_refused(skipdit, preset, tmp_path):
    ended = skipdit("sample", "--preset", preset("weights: digits\nsample: {steps: 2, num-inference-steps: 3}"))
    assert ended.code == 2 and "twice, under two names" in ended.stderr
    both = {"SKIPDIT_SAMPLE_STEPS": "2", "SKIPDIT_SAMPLE_NUM_INFERENCE_STEPS": "3"}
    ended = skipdit("sample", "--preset", "digits", "-o", tmp_path / "a.png", env=both)
    assert ended.code == 2 and "which are one flag" in ended.stderr


# Absurd sizes


HUGE = 1_000_000_000


@pytest.mark.parametrize("name", ["num_images", "num_inference_steps", "num_frames", "height", "width", "batch_size"])
def test_an_absurd_size_is_a_sentence_wherever_it_comes_from(skipdit, record, preset, tmp_path, name):
    flag = name.replace("_", "-")
    out = ("-o", tmp_path / "a.png")
    if name == "batch_size":  # of what there is to make; nothing larger is made of it
        assert skipdit("sample", "--from", record(batch_size=HUGE), *out).code == 0
        ended = skipdit("bench", "--preset", "digits", "--batch-size", HUGE)
        assert ended.code == 2 and "GB of memory" in ended.stderr
        return
    own = preset(f"weights: digits\nsample: {{{flag}: {HUGE}}}")
    for arguments, env in (
        (("--preset", own), None),
        (("--from", record(**{name: HUGE})), None),
        (("--preset", "digits"), {f"SKIPDIT_SAMPLE_{name.upper()}": str(HUGE)}),
        (("--preset", "digits", f"--{flag}", HUGE), None),
    ):
        ended = skipdit("sample", *arguments, *out, env=env)
        assert ended.code == 2 and ended.exception is None and not out[1].exists(), ended.stderr
        assert "GB of memory" in ended.stderr if name == "num_images" else f"--{flag} {HUGE}" in ended.stderr


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (f"max_sequence_length={HUGE}", "at most"),
        (f"sigmas=[{HUGE}]", "at most"),
        ("sigmas=[" + "1," * 10_001 + "]", "more than"),
        ("prompt_2=" + "a" * 100_001, "letters"),
        ("eta=" + "[" * 5000, "nested more than"),
        ("eta=2026-13-45", "not readable YAML"),
        ("eta=2026-01-01", "a date in it"),
        ("eta=9" + "9" * 5000, "not readable YAML"),
    ],
)
def test_an_absurd_argument_of_a_pipeline_is_a_sentence(skipdit, record, text_pipeline, tmp_path, argument, says):
    made = {"model": str(text_pipeline), "weights": None, "class_labels": None, "prompt": ["a cat"]}
    for source in (("--from", record(**made, pipeline_arg=[argument])), ("-m", text_pipeline, "--prompt", "a",
                                                                         "--pipeline-arg", argument)):  # fmt: skip
        ended = skipdit("sample", *source, "-o", tmp_path / "a.mp4")
        assert ended.code == 2 and ended.exception is None and says in ended.stderr, ended.stderr


def test_other_commands_are_bounded_too(skipdit, tmp_path):
    for arguments in (
        ("info", "--preset", "digits", "--steps", HUGE),
        ("demo", "--samples-per-digit", HUGE, "-o", tmp_path / "demo"),
        ("finetune", "--preset", "digits", "--dataloader-num-workers", HUGE, "-o", tmp_path / "run"),
        ("finetune", "--preset", "digits", "--train-batch-size", HUGE, "-o", tmp_path / "run"),
        ("train", "--preset", "digits", "--seed", 10**30, "-o", tmp_path / "run"),
        ("convert", "--preset", "digits", "--sample-size", HUGE, "-o", tmp_path / "run"),
    ):
        ended = skipdit(*arguments)
        assert ended.code == 2 and "expected at most" in ended.stderr, ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_refusal_names_the_source_of_a_value_that_was_not_typed(skipdit, record, preset, tmp_path):
    own, out = preset("weights: digits\nsample: {seed: -1}"), ("-o", tmp_path / "a.png")
    assert "It comes from the preset own." in skipdit("sample", "--preset", own, *out).stderr
    assert "It comes from the record of" in skipdit("sample", "--from", record(seed=-1), *out).stderr
    said = skipdit("sample", "--preset", "digits", *out, env={"SKIPDIT_SAMPLE_SEED": "-1"}).stderr
    assert "It comes from the environment." in said
    assert "It comes from" not in skipdit("sample", "--preset", own, "--seed=-2", *out).stderr


def test_nothing_reads_a_record_or_a_preset_but_by_the_closed_lists():
    """Every recorded setting is a flag of sample, and none says where to write."""
    from typer.main import get_command

    from skipdit_cli.app import app
    from skipdit_cli.commands.replay import RECORDED
    from skipdit_cli.presets import FORBIDDEN_FLAGS

    parameters = {parameter.name for parameter in get_command(app).commands["sample"].params}
    assert set(RECORDED) - {"weights"} <= parameters
    assert not {name.replace("-", "_") for name in FORBIDDEN_FLAGS} & set(RECORDED)
    assert not {"json", "debug", "from_file", "preset", "cpu_offload", "local_files_only"} & set(RECORDED)


def test_the_json_beside_a_video_is_a_record_too(skipdit, tmp_path):
    clip = tmp_path / "a.gif"
    assert skipdit("sample", "--preset", "digits-video", "--class-labels", 3, "--steps", 2, "-o", clip).code == 0
    beside = json.loads(clip.with_suffix(".json").read_text())
    beside["skipdit"]["settings"] |= {"output": str(tmp_path / "evil.gif"), "overwrite": True}
    clip.with_suffix(".json").write_text(json.dumps(beside))
    ended = skipdit("sample", "--from", clip.with_suffix(".json"), "-o", tmp_path / "b.gif")
    assert ended.code == 0 and "output, overwrite" in ended.stderr and not (tmp_path / "evil.gif").exists()
    assert (tmp_path / "b.gif").read_bytes() == clip.read_bytes()
