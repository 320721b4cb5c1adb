"""``--class-labels``: numbers, ranges and names of classes."""

import json

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import read_labels

NAMES = {"0": "circle", "1": "square, box", "2": "crane", "3": "Crane, bird", "4": "crane"}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("circle", [0]),
        ("circle, Square ,0-2,4", [0, 1, 0, 1, 2, 4]),
        ("square, box", [1]),
        ("box", [1]),
        ("Crane", [3]),
    ],
)
def test_labels_are_numbers_ranges_and_names(text, labels):
    assert read_labels(text, NAMES) == labels


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("cirle", NAMES, "cirle, which is no name of .* Did you mean 'circle'"),
        ("crane", NAMES, "crane, which is a name of the classes 2 and 4; give the number"),
        ("3-1", NAMES, "3-1 but expected FIRST-LAST"),
        ("0-999999999", NAMES, "at most 10000 classes"),
        ("1" * 5000, NAMES, "is no name of"),
        ("1" * 5000, None, "expected integers separated by commas"),
        ("cat", None, "expected integers separated by commas"),
    ],
)
def test_other_labels_are_refused(text, names, message):
    with pytest.raises(UsageError, match=message):
        read_labels(text, names)


def test_commands_and_pipelines_take_the_names_of_a_model(skipdit, tiny_pipeline, tmp_path):
    from skipdit_cli import load_pipeline

    folder = tiny_pipeline()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": {"0": "circle", "7": "square, box"}}))
    assert load_pipeline(folder).get_label_ids("box") == [7]
    flags = ("-m", folder, "--class-labels", "box,0-1", "--steps", 2, "--json")
    sampled = skipdit("sample", *flags, "--cache", "fast", "-o", tmp_path / "a.png")
    assert sampled.code == 0, sampled.stderr
    assert "7,0,1" in (tmp_path / "a.png").read_bytes().decode("latin-1")
    result = skipdit("bench", *flags, "--rounds", 1, "--warmup", 0, "--no-exact")
    assert result.code == 0, result.stderr
    assert skipdit("bench", *flags[:3], "bax", "--steps", 2).code == 2
