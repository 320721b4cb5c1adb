"""An interrupted ``skipdit bench`` keeps its whole rounds, and the same command goes on from them."""

import json

import pytest
import torch

from skipdit_cli.bench.kept_rounds import KeptRounds
from skipdit_cli.bench.run import Bench
from skipdit_cli.bench.timing import Measured
from skipdit_cli.sampling.generate import Generated
from tests.support.faults import damaged


def test_whole_rounds_are_kept_and_a_resumed_bench_says_so(skipdit, tiny_pipeline, tmp_path, monkeypatch):
    model, out, original, runs = tiny_pipeline(num_layers=3), tmp_path / "out", Bench.generate_case, []
    command = ["bench", "-m", model, "--steps", 3, "--cache-interval", 2, "--rounds", 2, "--warmup", 0, "--no-exact"]
    command += ["--batch-size", 1, "-o", out, "--json"]

    def stop_at(number):
        runs.clear()

        def generate_case(self, case, advance=None):
            runs.append(case.name)
            if len(runs) == number:
                raise KeyboardInterrupt
            return original(self, case, advance)

        monkeypatch.setattr(Bench, "generate_case", generate_case)

    stop_at(None)
    whole = skipdit(*[part if part != out else tmp_path / "whole" for part in command])
    assert whole.code == 0, whole.stderr
    cases = len(whole.json["rows"])
    assert len(runs) == 2 * cases and whole.json["sessions"] == [2]

    stop_at(cases + 2)
    ran = skipdit(*command)
    assert ran.code == 130 and "keeps 1 round; the same command goes on from there" in ran.stderr
    assert not out.exists() and (tmp_path / "out.partial.json").exists()
    stop_at(None)
    other = skipdit(*command, "--seed", 4)
    assert other.code == 2 and "of an interrupted bench with other settings" in other.stderr and not runs

    resumed = skipdit(*command)
    assert resumed.code == 0 and len(runs) == cases, "the first round ran again, or the second was not run whole"
    assert resumed.json["sessions"] == [1, 1] and resumed.json["rounds"] == 2
    assert any("2 processes measured its 2 rounds (1 + 1)" in note for note in resumed.json["notes"])
    for row, same in zip(resumed.json["rows"], whole.json["rows"], strict=True):
        assert {name: row[name] for name in ("case", "psnr", "latent_rel_l2", "full_steps", "cost", "identical")} == {
            name: same[name] for name in ("case", "psnr", "latent_rel_l2", "full_steps", "cost", "identical")
        }
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    assert json.loads((out / "bench.json").read_text())["sessions"] == [1, 1]


@pytest.mark.parametrize("name", ["out.partial.json", "out.partial.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_rounds_are_measured_again(tmp_path, caplog, name, damage):
    kept = KeptRounds(tmp_path / "out", {})
    latents = torch.zeros(1, 1, 2, 2)
    first = Generated(images=None, latents=latents, report=None, denoise_seconds=1.0, total_seconds=1.0, cache_bytes=0,
                      steps=1, calls=1, full_steps=1)  # fmt: skip
    kept.save(["a"], [Measured([1.0], [1.0], None, first)])
    (whole,) = KeptRounds(tmp_path / "out", {}).restore(["a"])
    assert whole.seconds == [1.0] and torch.equal(whole.first.latents, latents) and not caplog.text
    damaged(tmp_path / name, damage)
    again = KeptRounds(tmp_path / "out", {})
    assert again.restore(["a"]) == [None] and again.rounds == 0
    assert ("so the bench begins anew" in caplog.text) == ((name, damage) != ("out.partial.json", "remove"))


def test_a_picture_does_not_replace_one_of_the_report(skipdit, tiny_pipeline, tmp_path):
    out = tmp_path / "out"
    ran = skipdit("bench", "-m", tiny_pipeline(), "-o", out, "--picture", out / "bench.png")
    assert ran.code == 2 and "bench.png, which --output" in ran.stderr and not out.exists()
