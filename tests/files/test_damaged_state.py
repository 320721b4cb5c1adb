"""What an interrupted run kept, damaged: it is recognised by its checksums and made again, said aloud."""

import json
import shutil

import pytest

from skipdit_cli import files
from skipdit_cli.planning.searching.journal import Journal
from skipdit_cli.studies.study_run import StudyRun
from tests.support.faults import DAMAGES, damaged
from tests.support.folders import SHORT, tree
from tests.support.toy_study import STUDY, ToySettings

PLACES = (0.0, 0.2, 0.5, 0.8, 0.99)


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_journal_of_a_calibration_begins_anew(tmp_path, damage, at, caplog):
    journal = Journal(tmp_path / "plan.yaml", {"seed": 1})
    journal.results = {"a": [1.5, 2.25], "b": [3.0, 1e-3]}
    journal.write()
    assert Journal(tmp_path / "plan.yaml", {"seed": 1}).results == journal.results and not caplog.text
    damaged(journal.path, damage, at)
    assert Journal(tmp_path / "plan.yaml", {"seed": 1}).results == {}
    assert f"{journal.path} is damaged, so the calibration begins anew" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_of_a_study_is_made_again(tmp_path, damage, caplog):
    place, executed = tmp_path / "study", []

    def execute(words):
        executed.append(words[0])
        return {"loss": len(executed) / 2}

    with files.work_in(place, files.STUDY):
        for _ in range(2):  # the second run has nothing left to do
            StudyRun(STUDY, ToySettings("tiny.yaml", 1), (0,), place, execute=execute).run_commands()
        assert executed == ["train", "convert"] and not caplog.text
        damaged(place / "results" / "vanilla-0.json", damage)
        run = StudyRun(STUDY, ToySettings("tiny.yaml", 1), (0,), place, execute=execute)
        run.run_commands()
    assert executed == ["train", "convert", "train"] and run.result("vanilla-0") == {"loss": 1.5}
    assert ("vanilla-0.json is damaged, so it is made again" in caplog.text) == (damage != "remove")


def test_damaged_samples_are_made_again(skipdit, interrupted, tmp_path):
    words, output, whole = interrupted
    kept = shutil.copytree(output, tmp_path / "kept")
    for name in ("0000.png", "0001.png", "partial.npy", "partial.sha256"):
        for damage in DAMAGES:
            damaged(output / name, damage)
            ended = skipdit(*words, "-o", output)
            assert ended.code == 0 and "made again" in ended.stderr, (name, damage, ended.stderr)
            assert tree(output) == whole, (name, damage)
            shutil.rmtree(output)
            shutil.copytree(kept, output)
    for damage in ("flip", "cut"):  # the settings that the samples were made with are not known any more
        damaged(output / "partial.json", damage)
        ended = skipdit(*words, "-o", output)
        assert ended.code == 2 and ended.stderr.count("\n") == 1 and "--overwrite" in ended.stderr, ended.stderr
    assert skipdit(*words, "-o", output, "--overwrite").code == 0 and tree(output) == whole


def test_settings_of_an_interrupted_sampling_are_trusted_by_their_checksum(skipdit, interrupted):
    words, output, whole = interrupted
    settings = json.loads((output / "partial.json").read_text())
    settings["seed"] = 7  # as damage may read: images of another seed would be added to those that are there
    (output / "partial.json").write_text(json.dumps(settings))
    ended = skipdit(*words, "--seed", "7", "-o", output)
    assert ended.code == 2 and "partial.json, which is damaged" in ended.stderr
    del settings["sha256"], settings["seed"]  # as a run of 0.1.0 left it, with the seed of the words
    (output / "partial.json").write_text(json.dumps({**settings, "seed": 0}))
    assert skipdit(*words, "-o", output).code == 0 and tree(output) == whole


@pytest.fixture
def interrupted(skipdit, tiny_pipeline, tmp_path, monkeypatch):
    """An interrupted run of ``sample``: its words, its folder, and what an undisturbed one leaves there."""
    from skipdit_cli.commands.sample_files import SampleFolder

    words = ("sample", "-m", tiny_pipeline(), "--class-labels", "0,1,2", *SHORT)
    assert skipdit(*words, "-o", tmp_path / "out").code == 0
    whole = tree(tmp_path / "out")
    assert files.remove_listed(tmp_path / "out")
    add = SampleFolder.add

    def stop(self, batch, part):
        add(self, batch, part)
        if batch.start == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SampleFolder, "add", stop)
        assert skipdit(*words, "-o", tmp_path / "out").code == 130
    return words, tmp_path / "out", whole
