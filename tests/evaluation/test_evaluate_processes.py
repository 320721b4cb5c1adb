"""``skipdit evaluate`` in several processes: the scores of one."""

import json

from PIL import Image

from skipdit_cli import media
from skipdit_cli.training.data.moving_digits import scans
from tests.support.processes import run_together


def test_the_scores_are_those_of_one_process_and_an_unreadable_image_ends_all(skipdit, tmp_path):
    folder, (images, labels) = tmp_path / "scans", scans()
    folder.mkdir()
    for index in range(40):
        record = {"settings": {"class_labels": str(labels[index])}}
        media.save_picture(Image.fromarray(images[index]), folder / f"{index:04d}.png", record)
    kept = {"XDG_CACHE_HOME": tmp_path / "cache"}
    command = ("evaluate", folder, "--reference", "digits", "--batch-size", 16, "--json")
    alone = skipdit(*command, "--save-statistics", tmp_path / "1.npz", env={k: str(v) for k, v in kept.items()})
    assert alone.code == 0, alone.stderr
    more = ("--save-statistics", tmp_path / "2.npz")
    first, second = run_together(2, *command, *more, folder=tmp_path / "logs", env={"XDG_CACHE_HOME": tmp_path / "b"})
    assert (first.code, second.code) == (0, 0), first
    assert json.loads(first.stdout)["scores"] == alone.json["scores"] and second.stdout == second.stderr == ""
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()

    (folder / "0020.png").write_bytes((folder / "0020.png").read_bytes()[:100])  # of the second batch
    first, second = run_together(2, *command, folder=tmp_path / "broken", env=kept)
    assert (first.code, second.code) == (2, 2)
    assert "0020.png" in first.stderr and first.stderr.count("\n") == 1 and second.stderr == ""
