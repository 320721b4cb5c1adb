"""A training run from Python prints nothing: its observer receives what it has to say."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from skipdit_cli.processes import Team
from skipdit_cli.training import TrainingSettings
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.observer import Observer
from skipdit_cli.training.run import session
from skipdit_cli.training.run.loop import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Recorder(Observer):
    """Keeps the messages, and the units done of each piece of work."""

    def __init__(self):
        self.said, self.warned, self.done = [], [], {}

    def say(self, message):
        self.said.append(message)

    def warn(self, message, topic=None):
        self.warned.append((topic, message))

    def progress(self, description, total):
        def advance(count=1, note=""):
            self.done[description] = self.done.get(description, 0) + count

        return nullcontext(advance)


def settings(tmp_path, **more) -> TrainingSettings:
    return TrainingSettings(data="digits", output=tmp_path / "run", train_batch_size=2, max_train_steps=2, **more)


def test_a_run_tells_its_observer_and_prints_nothing(tiny_dit, tmp_path, capfd):
    from skipdit_cli.models import default_scheduler, pipeline_around

    observer = Recorder()
    begun = session.begin(settings(tmp_path, validation_steps=2), Demand(num_classes=10, has_null=False), observer)
    assert begun.settings.label_dropout == 0 and "no null class" in observer.said[0]
    assert observer.said[1] == "1,797 images, 10 classes, 0 skipped"
    begun.settings.output.mkdir()
    pipe = pipeline_around(tiny_dit(), default_scheduler())
    outcome = Trainer(begun, pipe).run()
    assert outcome.step == 2 and observer.done == {"train": 2} and observer.warned == []
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2
    assert "".join(capfd.readouterr()) == ""


def test_only_the_main_process_reports(tmp_path, monkeypatch):
    for main in (True, False):
        accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
        monkeypatch.setattr(session, "make_accelerator", lambda _, accelerator=accelerator: accelerator)
        monkeypatch.setattr(session, "join", lambda _, team=Team(rank=int(not main)): team)
        observer = Recorder()
        begun = session.begin(settings(tmp_path), Demand(num_classes=10), observer)
        assert bool(observer.said) == main and (begun.observer is observer) == main
