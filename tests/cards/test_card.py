"""The card of a folder and its way to the hub: what it says was found out, its lines of Python were run, and nothing
is uploaded but the model. The hub itself is a stand-in here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import filter_repo_objects

from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.models.folder import drop_paths
from tests.support.tiny_pipelines import write_pipeline
from tests.support.tiny_transformers import tiny_text_transformer

RUN = ("--data", "digits", "--train-batch-size", 2, "--max-train-steps", 1)
USERS = """---
license: cc-by-nc-4.0
base_model: someone/first
tags: [not-for-all-audiences, diffusers]
model-index: [{name: first, results: []}]
---
# A text of my own
"""


def card(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def commands(folder: Path) -> list[str]:
    block = card(folder).text.split("## How it was made")[1].split("```")[1]
    return block.strip().splitlines()


def lines(folder: Path) -> str:
    """The Python that a card shows."""
    return re.search(r"```python\n(.*?)```", card(folder).text, flags=re.DOTALL)[1]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())


class Hub:
    """Stands in for the hub: what it was asked, and the names of the files that it would hold."""

    def __init__(self, monkeypatch):
        self.made, self.held, self.fails, self.private = [], [], None, None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        monkeypatch.setattr(HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", self.upload_folder)
        monkeypatch.setattr(HfApi, "repo_info", lambda api, repo_id: self)

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.made.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        if self.fails:
            raise self.fails
        assert Path(folder_path, "model_index.json").is_file(), "uploaded before it was whole"
        there = [*files(Path(folder_path)), "logs/events", "notes.txt", ".env", "transformer.bak"]
        self.held = sorted(filter_repo_objects(there, allow_patterns=allow_patterns))


@pytest.fixture
def hub(monkeypatch):
    return Hub(monkeypatch)


def test_a_converted_folder_says_what_it_is_and_its_python_runs(tiny_pipeline, tmp_path, skipdit, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert skipdit("convert", tiny_pipeline("my tiny"), "-o", tmp_path / "out").code == 0
    data, text = card(tmp_path / "out").data.to_dict(), card(tmp_path / "out").text
    assert data == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusers", "skip-dit"],
    }
    for said in (
        "# out",
        "`DiTTransformer2DModel`",
        "| blocks | 6 |",
        "3 pairs, `residual` merge",
        "my tiny, pipe",
    ):
        assert said in text
    assert "bit for bit equal" in text and "| time embedding | diffusers |" in text and "licence | not known" in text
    assert commands(tmp_path / "out") == ["skipdit convert '~/my tiny' -o ~/out"]
    assert not [name for name in files(tmp_path / "out") if name.endswith((".json", ".md")) and _names(tmp_path, name)]
    ran = subprocess.run(
        [sys.executable, "-c", lines(tmp_path / "out")], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "25 of 50 steps reused" in ran.stdout and (tmp_path / "sample.png").is_file()


def _names(folder: Path, name: str) -> bool:
    """Whether a file of ``folder/out`` gives away where it lies."""
    return str(folder) in (folder / "out" / name).read_text()


def test_the_python_of_every_kind_of_model_runs(tiny_dit, tiny_latte, text_pipeline, tmp_path, skipdit, monkeypatch):
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    monkeypatch.chdir(tmp_path)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    save_pipeline(DiTPipeline(tiny_dit(in_channels=4, out_channels=8), vae, DDIMScheduler()), "with-vae")
    write_pipeline(Path("latents"), tiny_dit(in_channels=4, out_channels=8))
    write_pipeline(Path("shallow"), tiny_dit(num_layers=2))
    write_pipeline(Path("video"), tiny_latte())
    write_pipeline(Path("free"), tiny_latte(num_embeds_ada_norm=None))
    write_pipeline(Path("mute"), tiny_text_transformer())
    Path("text").symlink_to(text_pipeline)
    made = {name: tmp_path / f"{name}-out" for name in "with-vae latents shallow video free text mute".split()}
    for name, folder in made.items():
        assert skipdit("convert", name, "-o", folder, "--no-verify").code == 0
        exec(lines(folder).replace("num_inference_steps=50", "num_inference_steps=4"), {})
        suffix = "gif" if name in ("video", "free", "text") else "png"
        assert Path(f"sample.{suffix}").is_file() != (name == "mute")
        Path(f"sample.{suffix}").unlink(missing_ok=True)
    tasks = [card(folder).data.pipeline_tag for folder in (made["video"], made["text"])]
    assert tasks == [None, "text-to-video"]
    assert "Plain diffusers" in card(made["latents"]).text and "Plain diffusers" not in card(made["video"]).text


@pytest.mark.parametrize(("name", "task"), [("wan-2.1", "text-to-video"), ("sd3-img2img", "image-to-image")])
def test_the_python_of_a_pipeline_of_diffusers_runs(tmp_path, skipdit, monkeypatch, name, task):
    import numpy as np
    from PIL import Image

    from tests.support.tiny_pipelines import build, sd3, settings_of

    monkeypatch.chdir(tmp_path)
    save_pipeline(sd3(img2img=True) if name == "sd3-img2img" else build(name), "source")
    assert skipdit("convert", "source", "-o", "out", "--no-verify").code == 0
    assert card(tmp_path / "out").data.pipeline_tag == task
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save("start.png")
    small = {"small": settings_of("sd3" if name == "sd3-img2img" else name)}
    exec(lines(tmp_path / "out").replace("num_inference_steps=50", "num_inference_steps=4, **small"), small)
    assert Path("sample.gif" if task.endswith("video") else "sample.png").is_file()


def test_a_hub_model_is_the_base_model(tiny_dit, tmp_path, skipdit, monkeypatch):
    repository = tmp_path / "hub" / "models--someone--dit"
    write_pipeline(repository / "snapshots" / ("a" * 40), tiny_dit())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40) / "README.md").write_text(USERS)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    made = skipdit("convert", "someone/dit", "-o", tmp_path / "out")
    assert made.code == 0, made.stderr
    data, text = card(tmp_path / "out").data, card(tmp_path / "out").text
    assert (data.base_model, data.license) == ("someone/dit", "cc-by-nc-4.0")
    assert "[someone/dit](https://huggingface.co/someone/dit)" in text and "licence | cc-by-nc-4.0" in text


def test_the_python_of_an_older_card_still_imports():
    from skipdit_cli import generate
    from skipdit_cli.pipelines.generation import generate as former

    assert former is generate


def test_of_a_readme_the_terms_are_taken_over_and_not_the_text(converted, tmp_path, skipdit, fresh_accelerate):
    source = converted()
    (source / "README.md").write_text(USERS)
    (source / "LICENSE.txt").write_text("terms")
    for stage in ("skip", "all"):
        output = tmp_path / stage
        ended = skipdit("finetune", "-m", source, *RUN, "-o", output, "--train", stage, "--learning-rate", 0.002)
        assert ended.code == 0, ended.stderr
        data, text = card(output).data.to_dict(), card(output).text
        assert data["license"] == "cc-by-nc-4.0" and data["base_model"] == "someone/first"
        assert data["tags"] == ["diffusers", "skip-dit", "diffusers-training", "not-for-all-audiences"]
        assert "model-index" not in data and "my own" not in text
        assert (output / "LICENSE.txt").read_text() == "terms"
        assert "| data | digits: 1,797 images" in text and "| learning rate | 0.002 |" in text
        assert "| steps | 1 of 2 samples each |" in text and "loss of the last step" in text
        trained = {"skip": "the skip branches alone", "all": "everything"}[stage]
        assert f"| trained | {trained}" in text
        taken = "Card: took license, base_model, tags from" in ended.stdout
        assert taken == (stage == "skip")  # the second source is a card of ours
        index = json.loads((output / "model_index.json").read_text())
        assert "_name_or_path" not in index and load_pipeline(output).transformer.skip_branches is not None
        source = output
    chain = commands(output)
    assert len(chain) == 2 and "--train skip" in chain[0] and "--train all" in chain[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("license: [", "is not readable YAML"),
        ("- mit", "is a list"),
        ("tags: &a [x]\nlicense: *a", "has the alias *a"),
    ],
)
def test_front_matter_that_cannot_be_read_is_said(text, said, tiny_pipeline, tmp_path, skipdit):
    (tiny_pipeline() / "README.md").write_text(f"---\n{text}\n---\n")
    made = skipdit("convert", tmp_path / "tiny", "-o", tmp_path / "out", "--no-verify")
    assert made.code == 0 and f"README.md {said}" in made.stdout and "nothing was taken" in made.stdout
    assert card(tmp_path / "out").data.license is None


def test_configs_forget_where_they_were_and_keep_the_hub_id(tmp_path):
    cached = "/home/alice/.cache/huggingface/hub/models--facebook--DiT-XL-2-256/snapshots/ab/transformer"
    places = {cached: "facebook/DiT-XL-2-256", "/home/alice/dit": None, "facebook/DiT": "facebook/DiT", None: None}
    path = tmp_path / "transformer" / "config.json"
    path.parent.mkdir()
    for place, kept in places.items():
        path.write_text(json.dumps({"num_layers": 2, **({"_name_or_path": place} if place else {})}))
        drop_paths(tmp_path)
        config = json.loads(path.read_text())
        assert config.get("_name_or_path") == kept and config["num_layers"] == 2


def test_a_run_replaces_its_own_card_and_nobody_elses(converted, tmp_path, skipdit, fresh_accelerate):
    run, output = ("finetune", "-m", converted(), *RUN, "-o", tmp_path / "run"), tmp_path / "run"
    assert skipdit(*run).code == 0
    path = output / "README.md"
    path.write_text(path.read_text().replace("---\nlib", "---\nlicense: mit\nlib", 1))
    resumed = ("--resume-from-checkpoint", "latest", "--max-train-steps", 2)
    assert skipdit(*run, *resumed).code == 0
    assert "| steps | 2 of" in card(output).text and card(output).data.license == "mit"
    assert skipdit(*run, "--overwrite").code == 0 and card(output).data.license is None

    path.write_text("my notes")
    assert "README.md, which skipdit did not write" in skipdit(*run, "--overwrite").stderr
    kept = skipdit(*run, *resumed)
    assert kept.code == 0 and "was kept" in kept.stderr and path.read_text() == "my notes"
    assert load_pipeline(output).transformer.skip_branches is not None


def test_bench_writes_its_table_into_the_card(tiny_pipeline, tmp_path, skipdit):
    assert skipdit("convert", tiny_pipeline(), "-o", tmp_path / "out", "--no-verify").code == 0
    path = tmp_path / "out" / "README.md"
    before = path.read_text()
    bench = ("bench", "-m", tmp_path / "out", "--steps", 4, "--rounds", 1, "--warmup", 0, "--batch-size", 1)
    bench += ("--cache-interval", 2, "--no-exact", "--update-card")
    assert skipdit(*bench).code == 0 and "not measured" not in path.read_text().lower()
    once = path.read_text()
    assert "| skip-cache | 1 | every 2 |" in once and "PSNR" in once
    assert skipdit(*bench).code == 0
    twice = path.read_text()
    for text in (once, twice):
        assert text.count("| skip-cache |") == 1
        assert re.sub(r"(<!-- skipdit bench -->\n).*(\n<!-- /)", r"\1\2", text, flags=re.DOTALL).startswith(
            before.split("Not measured")[0]
        )
        assert text.endswith(before.split("<!-- /skipdit bench -->")[1])
    path.write_text("# Mine")
    assert skipdit(*bench).code == 0
    assert path.read_text().startswith("# Mine\n\n## Speed and quality\n\n<!-- skipdit bench -->\n")


def test_a_push_holds_the_model_and_nothing_else(tiny_pipeline, tmp_path, skipdit, hub, fresh_accelerate):
    given = ("-o", tmp_path / "out", "--no-verify", "--push-to-hub", "alice/dit")
    made = skipdit("convert", tiny_pipeline(), *given, "--json")
    assert made.code == 0, made.stderr
    assert made.json["pushed_to"] == "https://huggingface.co/alice/dit" and hub.made == [("alice/dit", None)]
    assert hub.held == files(tmp_path / "out") and "README.md" in hub.held
    assert 'load_pipeline("alice/dit")' in card(tmp_path / "out").text and card(tmp_path / "out").text.startswith(
        "\n# dit\n"
    )

    hub.private, output = True, tmp_path / "run"
    run = ("finetune", "-m", tmp_path / "out", *RUN, "-o", output, "--validation-steps", 1)
    trained = skipdit(*run, "--push-to-hub", "alice/run", "--private")
    assert trained.code == 0, trained.stderr
    assert "Pushed to https://huggingface.co/alice/run." in trained.stdout and hub.made[-1] == ("alice/run", True)
    assert {"checkpoint-1", "samples", "metrics.jsonl"} <= {path.name for path in output.iterdir()}
    assert hub.held == files(tmp_path / "out")  # the same names: no checkpoint, no sample, no log


def test_a_failed_push_keeps_the_folder_and_says_how_to_go_on(tiny_pipeline, tmp_path, skipdit, hub, fresh_accelerate):
    hub.fails = ConnectionError("no route")
    output = tmp_path / "out"
    ended = skipdit("convert", tiny_pipeline(), "-o", output, "--no-verify", "--push-to-hub", "alice/dit")
    assert ended.code == 1 and len([line for line in ended.stderr.splitlines() if line.startswith("Error")]) == 1
    by_hand = f"hf upload alice/dit {output} --exclude .skipdit.json"
    assert f"(no route); {output} is whole and kept, to push it run '{by_hand}'." in ended.stderr
    run = tmp_path / "run"
    ended = skipdit("finetune", "-m", output, *RUN, "-o", run, "--push-to-hub", "alice/run")
    assert (
        ended.code == 1
        and f"{run} --exclude .skipdit.json --exclude 'checkpoint-*/*' --exclude metrics.jsonl'." in ended.stderr
    )
    assert load_pipeline(run).transformer.skip_branches is not None


def test_nothing_private_goes_where_all_can_read(tiny_pipeline, tmp_path, skipdit, hub):
    hub.private = False
    given = ("-o", tmp_path / "out", "--no-verify", "--push-to-hub", "alice/dit", "--private")
    ended = skipdit("convert", tiny_pipeline(), *given)
    assert ended.code == 1 and "alice/dit is public already" in ended.stderr and hub.held == []
    assert (tmp_path / "out" / "model_index.json").is_file()
