"""Captions of strangers: files that are not what they should be, what is kept of them, and disks that are full."""

import json
import math
import os
import signal
import time

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from skipdit_cli.models import load_pipeline
from skipdit_cli.training.data.order import draw, generator
from skipdit_cli.training.objective.conditioning import conditioning_of
from skipdit_cli.training.objective.flow import loss_of
from skipdit_cli.training.weighting import Weighting
from tests.support.caption_training import command, differ, losses, prepare
from tests.support.faults import file_limit
from tests.support.processes import start_together
from tests.support.tiny_training_pipelines import text_pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")


@pytest.fixture
def run(skipdit, tmp_path):
    """``run(*flags)``: one step of stage 1 of SD3, in the folder ``out``, which may be there."""
    model, data = prepare(tmp_path, "sd3")
    flags = ("-o", tmp_path / "out", "--overwrite", "--max-train-steps", 1)
    return lambda *more: skipdit(*command("sd3", model, data, tmp_path / "kept"), *flags, *more)


ROW = '{"file_name": "0.png", "text": "%s"}\n'


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("jsonl", (ROW % "dog" + '{"file_name": "1.png"}').encode(), "entry 2 is not of the kind"),
        ("jsonl", (ROW % "dog" + '{"file_name": "1.png"}').encode(), "it has no 'text'."),
        ("jsonl", (ROW % "  ").encode(), "the caption is empty."),
        ("jsonl", b'{"file_name": "0.png", "text": 3}', "the caption 3 is no text."),
        ("jsonl", (ROW % "caf\xe9").encode("latin-1"), "is no text in UTF-8 (byte"),
        ("csv", b"file_name,text\n0.png\n", "has 1 fields where the header has 2."),
        ("csv", b'file_name,text\n0.png,"%s"\n' % (b"a" * 140_000), "field larger than field limit"),
    ],
)
def test_metadata_that_says_no_caption_is_refused(run, tmp_path, name, content, said):
    (tmp_path / "data" / "metadata.jsonl").unlink()
    (tmp_path / "data" / f"metadata.{name}").write_bytes(content)
    ran = run()
    assert ran.code == 2 and said in ran.stderr and ran.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, text", [("jsonl", ROW % "dog"), ("csv", 'file_name,text\n0.png,"a ""red"" dog"\n')])
def test_a_byte_order_mark_is_no_part_of_the_first_line(run, tmp_path, name, text):
    (tmp_path / "data" / "metadata.jsonl").unlink()
    (tmp_path / "data" / f"metadata.{name}").write_text(text, encoding="utf-8-sig")
    ran = run()
    assert ran.code == 0 and "1 image, 1 caption" in ran.stdout, ran.stderr


def test_a_picture_with_two_captions_is_two_samples_and_a_text_too_long_is_said_in_a_line(run, tmp_path, capfd):
    rows = [{"file_name": "0.png", "text": text} for text in ("dog", "cat " * 2500, 'a "red" cat\n| 2', "dog")]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = run("--validation-steps", 1)
    assert ran.code == 0 and "4 images, 3 captions" in ran.stdout, ran.stderr
    written = ran.stderr + capfd.readouterr().err
    assert written.count("reads no more than the beginning of") == 1 and written.count("cat") < 20
    assert "truncated" not in written


def test_texts_are_encoded_anew_when_what_reads_them_is_another(run, tmp_path):
    assert "0 of 3 texts are kept" in run().stdout
    assert "3 of 3 texts are kept" in run().stdout
    rows = (tmp_path / "data" / "metadata.jsonl").read_text()
    (tmp_path / "data" / "metadata.jsonl").write_text(rows.replace('"dog"', '"a dog"'))
    assert "2 of 3 texts are kept" in run().stdout

    def touched(part: str, key: str, value) -> str:
        path = tmp_path / "model" / part
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, key: value}))
        found = run()
        assert found.code == 0, found.stderr
        return found.stdout

    assert "0 of 3 texts are kept" in touched("text_encoder_3/config.json", "layer_norm_epsilon", 1e-3)
    assert "0 of 3 texts are kept" in touched("tokenizer/tokenizer_config.json", "model_max_length", 12)
    assert "3 of 3 texts are kept" in run().stdout
    pipe = load_pipeline(tmp_path / "model")
    with torch.no_grad():
        pipe.text_encoder_2.text_projection.weight.add_(1)
    pipe.text_encoder_2.save_pretrained(tmp_path / "model" / "text_encoder_2")
    again = run()
    assert "0 of 3 texts are kept" in again.stdout and "6 of 6 latents are kept" in again.stdout


def test_a_full_disk_under_the_kept_texts_ends_the_run_in_a_sentence(run, tmp_path):
    with file_limit(1000):
        ran = run("--cache-latents", tmp_path / "full")
    assert ran.code == 1 and "Cannot keep" in ran.stderr and "give another --cache-latents" in ran.stderr, ran.stderr
    assert not (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_dropped_caption_is_the_negative_prompt_of_no_words(name):
    """As the pipelines encode ``negative_prompt=""`` beside another text: by all encoders, pooled as well."""
    pipe = text_pipeline(name)
    ours = conditioning_of(pipe, CPU).encode("")
    if name == "sd3":
        given = {"prompt_2": None, "prompt_3": None, "negative_prompt": "", "do_classifier_free_guidance": True}
        _, embeds, _, pooled = pipe.encode_prompt("a cat", **given)
    else:  # as its call does for true_cfg_scale
        embeds, pooled, _ = pipe.encode_prompt(prompt="", prompt_2=None)
    assert torch.equal(ours["encoder_hidden_states"], embeds) and torch.equal(ours["pooled_projections"], pooled)
    assert not torch.equal(conditioning_of(pipe, CPU).encode("dog")["pooled_projections"], pooled)


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_noise_levels_are_drawn_as_in_the_training_scripts_of_diffusers(scheme):
    """train_dreambooth_lora_sd3.py: u of ``compute_density_for_timestep_sampling``, the timesteps at u T, their
    sigmas; target noise - latents."""
    scheduler, source = text_pipeline("sd3").scheduler, generator(0, 2, 7, 0)
    loss = loss_of(scheduler, Weighting(scheme))
    x0 = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn = draw((0, 2, 7, 0), x0.shape, 1000, 0.1, loss.density)
    noise = torch.randn(x0.shape, generator=source)
    u = compute_density_for_timestep_sampling(scheme, 64, 0.0, 1.0, 1.29, generator=source)
    at = (u * scheduler.config.num_train_timesteps).long()
    times, sigmas = scheduler.timesteps[at], scheduler.sigmas[at].view(-1, 1, 1, 1)
    assert torch.equal(loss.times(drawn.t, x0), times)
    xt = (1 - sigmas) * x0 + sigmas * noise
    assert torch.equal(loss.add_noise(x0, drawn.noise, drawn.t), xt)
    answer = 0.3 * xt
    expected = (answer - (noise - x0)).square().mean()
    assert float(loss(answer, x0, drawn.noise, drawn.t).total) == pytest.approx(float(expected), rel=1e-6)
    assert math.isfinite(float(expected))


def test_a_run_that_is_interrupted_goes_on_bit_for_bit(skipdit, tmp_path):
    model, data = prepare(tmp_path, "flux")
    run = (*command("flux", model, data, tmp_path / "kept"), "--max-train-steps", 24)
    assert skipdit(*run, "-o", tmp_path / "whole").code == 0
    begun = start_together(1, *run, "-o", tmp_path / "parts", folder=tmp_path / "logs")[0]
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while begun.is_alive() and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.01)
    os.kill(begun.pid, signal.SIGINT)
    begun.join()
    said = (tmp_path / "logs" / "0.err").read_text()
    assert begun.exitcode == 130 and "--resume-from-checkpoint latest" in said, said
    assert 2 < metrics.read_text().count("\n") < 24
    assert skipdit(*run, "-o", tmp_path / "parts", "--resume-from-checkpoint", "latest").code == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert differ(tmp_path / "whole", tmp_path / "parts") == set()
