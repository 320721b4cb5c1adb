"""Reading labelled images: layouts, damage, and the way to a tensor."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from skipdit_cli.commands.training_options import ConsoleObserver
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.pixel_dataset import Pixels, crop
from skipdit_cli.training.data.samples import read_samples

IMAGES = Demand(num_classes=10)


def read_images(source):
    return read_samples(source, IMAGES, observer=ConsoleObserver())


def picture(path, value=128, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def test_digits_are_sixteen_greys_of_eight_by_eight():
    images = read_images("digits")
    assert str(images) == "1,797 images, 10 classes, 0 skipped"
    pixels, label, *_ = Pixels(images, 8, 1)[Choice(0)]
    assert pixels.shape == (1, 8, 8) and label == 0 and pixels.min() == -1 and pixels.max() <= 1
    sixteenths = (pixels + 1) * 8
    assert (sixteenths - sixteenths.round()).abs().max() < 0.05


def test_class_directories_by_name_and_by_number(tmp_path):
    for name in ("zebra", "ant", ".hidden"):
        picture(tmp_path / "names" / name / "deep" / "a.png")
    for name in ("2", "10", "0"):
        picture(tmp_path / "numbers" / name / "a.jpg")
        (tmp_path / "numbers" / name / "notes.txt").write_text("no image")
    assert read_images(str(tmp_path / "names")).conditions == [0, 1]
    assert sorted(read_images(str(tmp_path / "numbers")).conditions) == [0, 2, 10]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_files(tmp_path, suffix):
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / "b.png")
    rows = [("x/a.png", 7), ("b.png", 3)]
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    csv = ["file_name,label", *(f"{name},{label}" for name, label in rows)]
    (tmp_path / f"metadata.{suffix}").write_text("\n".join(lines if suffix == "jsonl" else csv))
    assert read_images(str(tmp_path)).conditions == [7, 3]


def damaged(folder, good: int, bad: int):
    for i in range(good):
        picture(folder / "0" / f"good{i:03}.png")
    for i in range(bad):
        buffer = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "JPEG" if i % 2 else "PNG")
        (folder / "0" / f"bad{i}.{'jpg' if i % 2 else 'png'}").write_bytes(
            buffer.getvalue()[: len(buffer.getvalue()) // 2]
        )
    return str(folder)


def test_unreadable_images_are_listed_and_above_one_percent_refused(tmp_path, capsys):
    images = read_images(damaged(tmp_path / "few", 199, 2))
    assert str(images) == "199 images, 1 class, 2 skipped"
    warned = capsys.readouterr().err
    assert "bad0.png" in warned and "bad1.jpg" in warned
    with pytest.raises(UsageError, match="2 of 101 images .*above 1 %"):
        read_images(damaged(tmp_path / "many", 99, 2))


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "there is no image"),
        ({"a.png": "loose"}, "expected class directories"),
        ({"metadata.jsonl": ""}, "metadata.jsonl lists none"),
        ({"metadata.jsonl": '{"file_name": "a.png"}'}, "entry 1 is not of the kind"),
        ({"metadata.jsonl": "not json"}, "entry 1 is not of the kind"),
        ({"metadata.jsonl": '{"file_name": "a.png", "label": "cat"}'}, "entry 1 is not of the kind"),
        ({"metadata.csv": "name,class\na,1"}, "entry 1 is not of the kind"),
        ({"metadata.jsonl": '{"file_name": "gone.png", "label": 1}'}, "1 of 1 images"),
    ],
)
def test_folders_without_usable_images_are_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_images(str(tmp_path))


def test_labels_must_be_classes_of_the_model(tmp_path):
    picture(tmp_path / "12" / "a.png")
    with pytest.raises(UsageError, match=r"label 12 but the model has classes 0\.\.9"):
        read_images(str(tmp_path)).check_labels(10)


def test_crop_resize_grey_and_mirror(tmp_path):
    picture(tmp_path / "0" / "wide.png", 200, size=(100, 40))
    images = read_images(str(tmp_path))
    colour = Pixels(images, 16, 3)[Choice(0)][0]
    assert colour.shape == (3, 16, 16)
    assert torch.allclose(colour[:, 8, 8], torch.tensor([200 / 127.5 - 1, -1.0, 1.0]), atol=1e-6)
    assert Pixels(images, 16, 1)[Choice(0)][0].shape == (1, 16, 16)

    ramp = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert crop(ramp, (8, 8)) is ramp
    ramp.save(tmp_path / "0" / "wide.png")
    plain, mirrored = (Pixels(read_images(str(tmp_path)), 8, 1)[Choice(0, flip)][0] for flip in (False, True))
    assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)
