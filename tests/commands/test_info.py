"""``skipdit info``: counts from configs alone."""

import json


def test_a_preset_of_the_largest_size_without_weights(skipdit):
    outcome = skipdit("info", "--preset", "dit-xl-2-256", "--json")
    assert outcome.code == 0, outcome.stderr
    facts = outcome.json
    assert (facts["blocks"], facts["pairs"], facts["attached"]) == (28, 14, False)
    assert abs(facts["macs"] / 1e9 - 118.64) < 0.02  # the paper's
    assert round(facts["macs_copied_by_diffusers"] / 1e9, 2) == 0.04  # an embedder in each block after the first
    assert round(facts["parameters"] / 1e6) == 675
    assert round(facts["skip_parameters"] / 1e6, 2) == 37.24
    assert round(100 * facts["skip_macs"] / facts["macs"], 1) == 8.0


def test_ideal_speedups_stand_against_both_models(skipdit):
    facts = skipdit("info", "--preset", "dit-xl-2-256", "--steps", 10, "--json").json
    ideal = {(row["cache_layers"], row["cache_interval"]): row for row in facts["ideal_speedups"]}
    assert round(ideal[1, 2]["vs_skip"], 2) == 1.87
    for row in ideal.values():
        assert row["vs_skip"] > row["vs_vanilla"]
    assert facts["num_inference_steps"] == 10


def test_a_converted_folder_shows_what_it_records(golden_pipeline, skipdit):
    facts = skipdit("info", golden_pipeline("dit_skip_cache"), "--json").json
    assert (facts["attached"], facts["merge"], facts["time_embedding"]) == (True, "replace", "official")
    assert facts["blocks"] == 28


def test_no_weights_are_read(tiny_pipeline, skipdit):
    folder = tiny_pipeline()
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    outcome = skipdit("info", "-m", folder)
    assert outcome.code == 0, outcome.stderr
    assert "6, 3 pairs" in outcome.stdout and "none yet" in outcome.stdout


def test_a_model_given_twice_or_not_at_all(tiny_pipeline, skipdit):
    folder = tiny_pipeline()
    assert skipdit("info", folder, "-m", folder).code == 2
    outcome = skipdit("info")
    assert outcome.code == 2 and "no model" in outcome.stderr


def test_a_config_that_diffusers_cannot_build(tiny_pipeline, skipdit):
    folder = tiny_pipeline()
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_type": "layer_norm"}))
    outcome = skipdit("info", folder)
    assert outcome.code == 2 and outcome.exception is None


def test_a_second_look_imports_no_torch_and_a_changed_config_is_counted_anew(tiny_pipeline, skipdit, monkeypatch):
    import sys

    info = sys.modules["skipdit_cli.commands.info"]

    folder, count, counted = tiny_pipeline(), info._count, []

    def noted(*arguments):
        counted.append(arguments)
        return count(*arguments)

    monkeypatch.setattr(info, "_count", noted)
    first = skipdit("info", folder, "--json")
    assert first.code == 0 and len(counted) == 1, first.stderr
    assert skipdit("info", folder, "--json").stdout == first.stdout and len(counted) == 1
    assert skipdit("info", folder, "--steps", 7).code == 0 and len(counted) == 2
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 6', '"num_layers": 4'))
    assert skipdit("info", folder, "--json").json["blocks"] == 4 and len(counted) == 3
