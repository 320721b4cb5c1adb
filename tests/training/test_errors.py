"""Training refuses bad input in one sentence, before the weights are read, and writes nothing."""

import json

import pytest
from PIL import Image

from skipdit_cli.training.run import state

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
RUN = ("--data", "digits", "--train-batch-size", 2, "--max-train-steps", 1)


def assert_refused(outcome, code: int, said: str) -> None:
    assert outcome.code == code and outcome.exception is None
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("Warning:")]
    assert len(lines) == 1 and lines[0].startswith("Error:") and said in lines[0], outcome.stderr


BAD_FLAGS = [
    (("--data", "nowhere"), "not a folder"),
    (("--train-batch-size", 0), "--train-batch-size 0"),
    (("--max-train-steps", 0), "--max-train-steps 0"),
    (("--gradient-accumulation-steps", 0), "at least 1"),
    (("--checkpointing-steps", 0), "at least 1"),
    (("--checkpoints-total-limit", 0), "at least 1"),
    (("--lr-warmup-steps", -1), "at least 0"),
    (("--seed", -1), "at least 0"),
    (("--learning-rate", 0), "above 0"),
    (("--learning-rate", "nan"), "expected a number"),
    (("--label-dropout", 1.5), "0 <= value < 1"),
    (("--ema-decay", 1), "0 <= value < 1"),
    (("--lr-scheduler", "cosin"), "Did you mean 'cosine'?"),
    (("--mixed-precision", "bf61"), "Did you mean 'bf16'?"),
    (("--report-to", "comet"), "none, tensorboard, wandb"),
    (("--train", "skp"), "Did you mean 'skip'?"),
    (("--resume-from-checkpoint", "gone"), "is no checkpoint"),
    (("--resume-from-checkpoint", "latest", "--overwrite"), "would delete the checkpoints"),
]


@pytest.mark.parametrize("flags, said", BAD_FLAGS, ids=[" ".join(map(str, flags)) for flags, _ in BAD_FLAGS])
def test_bad_flags(skipdit, converted, tmp_path, flags, said):
    assert_refused(skipdit("finetune", "-m", converted(), *RUN, "-o", tmp_path / "run", *flags), 2, said)
    assert not (tmp_path / "run").exists()


def test_missing_parts(skipdit, converted, tiny_pipeline, tmp_path):
    output = ("-o", tmp_path / "run")
    assert_refused(skipdit("finetune", *RUN, *output), 2, "Got no model")
    assert_refused(skipdit("finetune", "-m", converted(), "-o", tmp_path / "run"), 2, "Got no --data")
    assert_refused(skipdit("finetune", "-m", converted(), *RUN), 2, "Got no --output")
    assert_refused(skipdit("finetune", "-m", tmp_path / "gone", *RUN, *output), 2, "does not exist")
    assert_refused(skipdit("finetune", "-m", tiny_pipeline("plain"), *RUN, *output), 2, "has no skip branches")
    assert_refused(skipdit("train", *RUN, *output), 2, "Got no --preset")
    assert_refused(skipdit("train", "--preset", "digts", *RUN, *output), 2, "Did you mean 'digits'?")
    assert not (tmp_path / "run").exists()


def test_an_output_in_the_way(skipdit, converted, tmp_path):
    model, output = converted(), tmp_path / "run"
    output.mkdir()
    (output / "letter.txt").write_text("dear")
    assert_refused(skipdit("finetune", "-m", model, *RUN, "-o", output), 2, "exists and is not empty")
    assert_refused(skipdit("finetune", "-m", model, *RUN, "-o", output, "--overwrite"), 2, "letter.txt")
    assert_refused(skipdit("finetune", "-m", model, *RUN, "-o", output / "letter.txt"), 2, "is a file")
    assert_refused(skipdit("finetune", "-m", model, *RUN, "-o", model, "--overwrite"), 2, "is the model itself")
    assert (output / "letter.txt").read_text() == "dear" and (model / "skip").is_dir()
    (output / "letter.txt").unlink()
    assert skipdit("finetune", "-m", model, *RUN, "-o", output).code == 0
    (output / "samples").mkdir()
    assert_refused(skipdit("finetune", "-m", model, *RUN, "-o", output, "--overwrite"), 2, "holds samples")
    (output / "samples").rmdir()
    assert skipdit("finetune", "-m", model, *RUN, "-o", output, "--overwrite").code == 0
    assert state.Checkpoints(output).steps() == [1]


def test_data_that_does_not_fit_the_model_is_refused_without_its_weights(skipdit, converted, tmp_path):
    model = converted()
    (model / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    (tmp_path / "data" / "11").mkdir(parents=True)
    run = ("finetune", "-m", model, *RUN, "-o", tmp_path / "run")
    assert_refused(skipdit(*run, "--data", tmp_path / "data"), 2, "there is no image")
    Image.new("L", (8, 8)).save(tmp_path / "data" / "11" / "a.png")
    assert_refused(skipdit(*run, "--data", tmp_path / "data"), 2, "label 11 but the model has classes 0..9")
    (tmp_path / "data" / "11" / "a.png").write_text("no image")
    assert_refused(skipdit(*run, "--data", tmp_path / "data"), 2, "1 of 1 images")
    assert_refused(skipdit(*run), 2, "cannot be read")
    assert not (tmp_path / "run").exists()


def test_a_model_of_latents_needs_its_vae(skipdit, tiny_pipeline, tmp_path):
    model = tiny_pipeline(in_channels=4, out_channels=8)
    outcome = skipdit("finetune", "-m", model, "--train", "all", *RUN, "-o", tmp_path / "run")
    assert_refused(outcome, 2, "works on latents")
    outcome = skipdit("train", "--preset", "digits", "--vae", tmp_path / "gone", *RUN, "-o", tmp_path / "run")
    assert_refused(outcome, 2, "--vae")
    assert not (tmp_path / "run").exists()


def test_fp16_needs_a_gpu(skipdit, converted, tmp_path):
    import torch

    if not torch.cuda.is_available():
        run = ("finetune", "-m", converted(), *RUN, "-o", tmp_path / "run")
        assert_refused(skipdit(*run, "--mixed-precision", "fp16"), 2, "GPU")
        assert not (tmp_path / "run").exists()


def test_a_missing_tracker_names_its_extra(skipdit, converted, tmp_path, monkeypatch):
    from skipdit_cli.training import training_settings as settings

    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    run = ("finetune", "-m", converted(), *RUN, "-o", tmp_path / "run")
    assert_refused(skipdit(*run, "--report-to", "tensorboard"), 2, "skipdit-cli[trackers]")


def test_resuming_what_cannot_be(skipdit, converted, tmp_path):
    model, output = converted(), tmp_path / "run"
    run = ("finetune", "-m", model, *RUN, "-o", output)
    latest = ("--resume-from-checkpoint", "latest")
    outcome = skipdit(*run, *latest)
    assert_refused(outcome, 1, f"no checkpoint in {output}")
    assert not output.exists()
    assert skipdit(*run, "--resume-from-checkpoint", "auto").code == 0

    assert_refused(skipdit(*run, *latest, "--max-train-steps", 2, "--seed", 1), 2, "seed 0 then, 1 now")
    forced = skipdit(*run, *latest, "--max-train-steps", 2, "--seed", 1, "--force-config")
    assert forced.code == 0 and state.Checkpoints(output).steps() == [1, 2]
    other = converted("other", num_layers=4)
    outcome = skipdit("finetune", "-m", other, *RUN, "-o", output, *latest, "--seed", 1)
    assert_refused(outcome, 2, "other weights")
    (output / "checkpoint-2" / state.REST).write_bytes(b"half")
    given = ("--resume-from-checkpoint", output / "checkpoint-2")
    assert_refused(skipdit(*run, *given, "--seed", 1), 2, "resume from an earlier one")
    record = json.loads((output / "checkpoint-1" / state.RECORD).read_text())
    assert record["step"] == 1 and record["settings"]["only_branches"] is True
