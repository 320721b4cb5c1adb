"""Data folders as people, systems and archives leave them: what becomes of each, or the sentence that refuses it."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from skipdit_cli import console, media
from skipdit_cli.commands.training_options import ConsoleObserver
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.class_folders import imagenet_order
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.samples import pick_by_time, read_samples

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CLASSES, TEXTS, NOTHING = Demand(num_classes=10), Demand(captions=True), Demand()


@pytest.fixture(autouse=True)
def _each_says_its_own():
    with console.own_json(False):
        yield


def lay_out(root, *names: str):
    """Pictures by their names; other files hold a word, and names that end in / are folders."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if name.endswith((".png", ".jfif", ".avif", ".JPEG")):
            Image.new("RGB", (8, 8)).save(path, {".png": "PNG", ".avif": "AVIF"}.get(path.suffix, "JPEG"))
        elif not name.endswith("/"):
            path.write_text("word")
    return root


def read(root, demand=CLASSES, **arguments):
    return read_samples(str(root), demand, observer=ConsoleObserver(), **arguments)


def refused(root, demand=CLASSES, **arguments) -> str:
    with pytest.raises(UsageError) as caught:
        read(root, demand, **arguments)
    return str(caught.value)


def test_hidden_parts_are_no_data(tmp_path):
    hidden = (
        ".ipynb_checkpoints/0-checkpoint.png",
        "._0.png",
        "__MACOSX/0.png",
        "@eaDir/0.png",
        "Thumbs.db",
        ".DS_Store",
    )
    lay_out(tmp_path, "Zebra/0.png", "cat/0.png", "dog/0.png", *(f"cat/{name}" for name in hidden))
    lay_out(tmp_path, "__MACOSX/cat/0.png", ".git/a.png", "@eaDir/a.png", "desktop.ini")
    samples = read(tmp_path)
    assert str(samples) == "3 images, 3 classes, 0 skipped" and samples.labels == {"Zebra": 0, "cat": 1, "dog": 2}
    assert str(read(tmp_path, NOTHING)) == "3 images, 0 skipped"
    lay_out(tmp_path / "clip" / "0" / "v", "1.png", "2.png", "._1.png", "Thumbs.db")
    assert media.probe_video(tmp_path / "clip" / "0" / "v").frames == 2


def test_what_is_left_out_is_counted_and_named(tmp_path):
    lay_out(tmp_path, "cat/a.png", "cat/b.jfif", "cat/c.avif", "cat/d.heic")
    assert str(read(tmp_path)) == "3 images, 1 class, 0 skipped, 1 left out (cat/d.heic)"
    lay_out(tmp_path, "cat/a.txt", "cat/b.txt", "montage.png")
    assert str(read(tmp_path)).endswith("4 left out (2 .txt, 1 .heic, 1 .png)")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat/a.png", "label": 3}\n')
    assert str(read(tmp_path)).endswith("3 left out that metadata.jsonl does not list (1 .jfif, 1 .avif, 1 .png)")


LAYOUTS = [
    (("train/cat/0.png", "val/cat/0.png"), "give --data {root}/train."),
    (("Test/cat/0.png", "VAL/cat/0.png", "more/"), "give --data {root}/VAL."),
    (("train/cat/0.png",), "give --data {root}/train."),
    (("images/cat/0.png", "images/dog/0.png"), "give --data {root}/images if those are the classes."),
    (("a/b/cat/0.png", "a/b/dog/0.png", "a/note.xml"), "give --data {root}/a/b if those are the classes."),
    (("a/b/train/cat/0.png", "a/b/val/cat/0.png"), "give --data {root}/a/b/train."),
    (("cat/0.png", "dog/"), "class folder dog, in which there is no image;"),
    (("cat/0.png", "dog/a.heic"), "class folder dog, in which there is no image (but dog/a.heic)"),
    (("01/0.png", "1/0.png"), "which mean the same"),
    (("3/0.png", "\u0663/0.png"), "which mean the same"),
    (("caf\u00e9/0.png", "cafe\u0301/0.png"), "which mean the same"),
    (("cat /0.png", "cat/0.png"), "which mean the same"),
    (("1/0.png", "2/0.png", "cat/0.png"), "class folders of numbers (1) and of names (cat)"),
    (("train/a.png", "train/metadata.jsonl"), "metadata.jsonl lies in {root}/train; give --data {root}/train."),
    (("a/b/test/metadata.csv", "a/b/train/metadata.csv", "a/b/train/0.png"), "give --data {root}/a/b/train."),
    (("cat/0.png", "metadata.jsonl", "metadata.csv"), "keep one of the two"),
    (("cat/0.png", "Metadata.jsonl"), "with Metadata.jsonl, which is not read"),
    (("cat/0.png", "metadata.json"), "expected metadata.jsonl or metadata.csv"),
    (("a.txt", "b.txt"), "in which there is no image (2 left out (2 .txt)): expected class directories"),
    ((os.fsdecode(b"caf\xe9/0.png"),), "class folder 'caf\\udce9', whose name is no plain text"),
]


@pytest.mark.parametrize(("names", "said"), LAYOUTS, ids=[ascii(names) for names, _ in LAYOUTS])
def test_layouts_that_mean_something_else_are_refused(tmp_path, names, said):
    assert said.format(root=tmp_path) in refused(lay_out(tmp_path, *names))


def test_what_is_told_apart_is_not_refused(tmp_path, capsys, monkeypatch):
    """Letters of both cases, notes on the data, what systems leave, and the folder that one is in."""
    lay_out(tmp_path, "A/0.png", "a/0.png", "metadata.txt", "lost+found/", "__pycache__/x.pyc")
    monkeypatch.chdir(tmp_path)
    samples = read(".")
    assert samples.labels == {"A": 0, "a": 1} and str(samples).endswith("1 left out (metadata.txt)")
    assert "'A' and 'a' differ in capitals alone; they are two classes" in capsys.readouterr().err
    assert len(read(".", NOTHING)) == 2
    lay_out(tmp_path / "one", "cat/2026/0.png", "cat/2026/1.png")
    assert read("one").labels == {"cat": 0}


def test_parts_of_a_data_set_are_refused_without_classes_and_with_texts_too(tmp_path):
    lay_out(tmp_path, "train/a.png", "val/a.png")
    assert f"give --data {tmp_path}/train." in refused(tmp_path, NOTHING)
    lay_out(tmp_path / "coco", "images/train/a.png", "images/val/a.png")
    assert f"give --data {tmp_path}/coco/images/train." in refused(tmp_path / "coco", NOTHING)
    lay_out(tmp_path, "train/metadata.jsonl", "val/metadata.jsonl")
    assert f"metadata.jsonl lies in {tmp_path}/train" in refused(tmp_path, TEXTS)
    lay_out(tmp_path / "kohya", "a.png", "a.txt")
    assert "Texts beside the images, such as a.txt, are not read." in refused(tmp_path / "kohya", TEXTS)


def test_parts_within_classes_are_said(tmp_path, capsys):
    lay_out(tmp_path, "cat/train/a.png", "cat/val/b.png", "dog/train/a.png")
    assert read(tmp_path).conditions == [0, 0, 1]
    assert "hold parts of a data set (train, val), and all are taken" in capsys.readouterr().err


def test_links_are_followed_within_the_folder_and_refused_beyond(tmp_path, capsys):
    data = lay_out(tmp_path / "data", "cat/0.png", "store/deep/1.png")
    lay_out(tmp_path / "elsewhere", "2.png")
    (data / "cat" / "link.png").symlink_to(data / "store" / "deep" / "1.png")
    assert len(read(data)) == 3
    (data / "dog").symlink_to(tmp_path / "elsewhere")
    assert "outside the data folder" in refused(data) and "--allow-outside" in refused(data)
    samples = read(data, allow_outside=True)
    assert samples.labels == {"cat": 0, "dog": 1, "store": 2} and len(samples) == 4
    assert capsys.readouterr().err.count("outside the data folder, and is used") == 1
    (data / "dog").unlink()
    (data / "dog").symlink_to(data / "cat")
    assert "would be taken twice" in refused(data)
    (data / "dog").unlink()
    (data / "cat" / "gone.png").symlink_to(data / "nothing.png")
    assert str(read(data)).endswith("1 left out (cat/gone.png)")
    (tmp_path / "alias").symlink_to(data)
    assert len(read(tmp_path / "alias")) == 3


def test_synsets_get_the_labels_of_imagenet(tmp_path, capsys):
    order = list(imagenet_order())
    assert len(order) == 1000 and order == sorted(order) and order[0] == "n01440764" and order[999] == "n15075141"
    lay_out(tmp_path, "n02099601/0.JPEG", "n02123045/0.JPEG")
    samples = read(tmp_path, Demand(num_classes=1000))
    assert samples.conditions == [207, 281]
    assert str(samples.classes) == "Labels of the class folders, in ImageNet's order: n02099601 207, n02123045 281."
    assert read(tmp_path, Demand(num_classes=2)).conditions == [0, 1]
    lay_out(tmp_path, "n00000001/0.JPEG")
    assert read(tmp_path, Demand(num_classes=1000)).conditions == [0, 1, 2]
    assert "none of ImageNet's 1,000 synsets" in capsys.readouterr().err


def test_folders_named_as_the_model_names_its_classes_get_its_labels(tmp_path, capsys):
    lay_out(tmp_path, "cat/0.png", "dog/0.png")
    named = lambda **names: Demand(num_classes=10, class_names=names)  # noqa: E731
    assert read(tmp_path, named(dog=(3,), cat=(7,), bird=(1,))).conditions == [7, 3]
    assert "Did you mean 'dogs'?" in refused(tmp_path, named(dogs=(3,), cat=(7,)))
    assert "classes 3 and 5" in refused(tmp_path, named(dog=(3, 5), cat=(7,)))
    assert read(tmp_path, named(tench=(0,))).conditions == [0, 1]
    assert "none of the class folders" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["cat"], {"x": "cat"}, {"0": 3}])
def test_a_model_whose_names_are_none_is_refused(skipdit, converted, tmp_path, names):
    model = converted()
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    ran = skipdit("finetune", "-m", model, "--data", lay_out(tmp_path / "data", "cat/0.png"), "-o", tmp_path / "run")
    assert ran.code == 2 and "Error: " in ran.stderr and not (tmp_path / "run").exists()


def test_labels_do_not_depend_on_how_a_system_spells_accents(tmp_path):
    for form in ("NFC", "NFD"):
        lay_out(
            tmp_path / form, *(unicodedata.normalize(form, f"{name}/0.png") for name in ("\u00e9t\u00e9", "ezz", "f"))
        )
    assert read(tmp_path / "NFC").labels == read(tmp_path / "NFD").labels == {"ezz": 0, "f": 1, "\u00e9t\u00e9": 2}


def table(root, text: str, name: str = "metadata.csv"):
    lay_out(root, "a.png", "b.png")
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


BAD_TABLES = [
    ("file_name,text\nb.png,a dog\na.png,a cat, sitting on a mat\n", TEXTS, "entry 2 ", "'a.png' has 3 fields where"),
    ("file_name,text\na.png\n", TEXTS, "entry 1 ", "has 1 fields where the header has 2"),
    ("file_name;text\na.png;a cat\n", TEXTS, "entry 1 ", "columns are parted by commas"),
    ("file_name\ttext\na.png\ta cat\n", TEXTS, "entry 1 ", "columns are parted by commas"),
    ("file_name,text,text\na.png,a,b\n", TEXTS, "entry 1 ", "header has 'text' twice"),
    ("file_name,text,caption\na.png,a,b\n", TEXTS, "entry 1 ", "it has a text and another caption; keep one"),
    ('file_name,text\na.png,"a cat\nb.png,a dog\n', TEXTS, "entry 1 ", "unexpected end of data"),
    ('file_name,text\na.png,"a cat\nb.png,a dog"\n', TEXTS, "entry 1 ", "a quote is not closed"),
    ("file_name,text\na.png, \n", TEXTS, "entry 1 ", "the caption is empty"),
    ("file_name,text\na.png,3\nb.png,4\n", TEXTS, "", "nothing but numbers for captions"),
    ("file_name,text\na.png,caf\u00e9\n".encode("latin-1"), TEXTS, "", "no text in UTF-8"),
    ("file_name,text\na.png,cat\n".encode("utf-16"), TEXTS, "", "no text in UTF-8"),
    ("file_name,label\na.png,3.0\n", CLASSES, "entry 1 ", 'label "3.0" is no whole number'),
    ("file_name,label\na.png,1_0\n", CLASSES, "entry 1 ", "no whole number"),
    ("file_name,label\na.png,3\na.png,4\n", CLASSES, "entry 2 ", "is listed already, in entry 1, as another class"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "demand", "entry", "said"), BAD_TABLES)
def test_tables_that_would_lose_something_are_refused(tmp_path, text, demand, entry, said):
    (tmp_path / "sub").mkdir()
    sentence = refused(table(tmp_path, text), demand)
    assert f"{tmp_path / 'metadata.csv'} {entry}" in sentence and said in sentence, sentence


@pytest.mark.parametrize(
    ("row", "demand", "said"),
    [
        *(({"label": label}, CLASSES, "is no whole number") for label in (True, "3", 3.0, 3.5, None, [3], {"id": 3})),
        ({}, CLASSES, "it has no 'label'"),
        *(({"text": text}, TEXTS, "is no text") for text in (3, True, ["a"], {"en": "a"})),
        ({"text": None}, TEXTS, "the caption is empty"),
        ({"text": "\ud800"}, TEXTS, "surrogates not allowed"),
        *(({"file_name": name, "label": 3}, CLASSES, "is no name of a file") for name in (None, 3, "", ["a.png"])),
        ({"file_name": ".", "label": 3}, CLASSES, "is the data folder itself"),
        ({"file_name": "x\\a.png", "label": 3}, CLASSES, "is a path of Windows; write x/a.png"),
        ({"file_name": "C:\\x\\a.png", "label": 3}, CLASSES, "is a path of Windows; write x/a.png"),
        ({"file_name": "x" * 5000, "label": 3}, CLASSES, "File name too long"),
        ({"file_name": "https://a.b/a.png", "label": 3}, CLASSES, "is an address"),
    ],
)
def test_json_of_the_wrong_type_is_refused(tmp_path, row, demand, said):
    sentence = refused(table(tmp_path, json.dumps({"file_name": "a.png", **row}) + "\n", "metadata.jsonl"), demand)
    assert "metadata.jsonl entry 1 is not of the kind" in sentence and said in sentence, sentence


@pytest.mark.parametrize("line", ['{"file_name": "a.png", "label": 1, "label": 2}', "[1]", "3", "[" * 100_000])
def test_json_lines_that_are_no_plain_objects_are_refused(tmp_path, line):
    assert "metadata.jsonl entry 1 is not of the kind" in refused(table(tmp_path, line, "metadata.jsonl"))


def test_files_that_lie_outside_need_the_flag(tmp_path, capsys):
    other = lay_out(tmp_path / "other", "c.png")
    data = table(tmp_path / "data", "")
    (data / "link.png").symlink_to(other / "c.png")
    (data / "metadata.csv").unlink()
    for name in (str(other / "c.png"), "../other/c.png", "link.png"):
        row = json.dumps({"file_name": name, "label": 3})
        (data / "metadata.jsonl").write_text(row)
        assert "outside the data folder" in refused(data) and "give --allow-outside" in refused(data)
        assert read(data, allow_outside=True).conditions == [3]
    assert "outside the data folder, and is used" in capsys.readouterr().err
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": str(data / "a.png"), "label": 3}))
    assert read(data).conditions == [3]


def test_good_tables(tmp_path, capsys):
    text = '\ufefffile_name,text,label\na.png,"a cat, asleep",3\nb.png,"two\nlines",4\nb.png,a dog,4\n'
    assert read(table(tmp_path, text), TEXTS).conditions == ["a cat, asleep", "two\nlines", "a dog"]
    said = capsys.readouterr().err
    assert "lists files again in 1 of its entries" in said and said.count("'label', which is not used") == 1
    assert read(table(tmp_path, "file_name, label\na.png, 3\nb.png,04\n")).conditions == [3, 4]


def test_the_run_keeps_the_names_and_resuming_compares_them(skipdit, converted, tmp_path):
    data = lay_out(tmp_path / "data", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)))
    run = ("--data", data, "-o", tmp_path / "run", "--train-batch-size", 2)
    model = converted()
    ran = skipdit("finetune", "-m", model, *run, "--max-train-steps", 1)
    assert ran.code == 0 and "Labels of the class folders, sorted: cat 0, dog 1." in ran.stdout, ran.stderr
    assert json.loads((tmp_path / "run" / "model_index.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    sampled = ("sample", "-m", tmp_path / "run", "--steps", 2)
    named, numbered = (skipdit(*sampled, "--class-labels", k, "-o", tmp_path / f"{k}.png") for k in ("dog", "1"))
    assert named.code == numbered.code == 0
    assert (np.asarray(Image.open(tmp_path / "dog.png")) == np.asarray(Image.open(tmp_path / "1.png"))).all()

    on = ("finetune", "-m", model, *run, "--max-train-steps", 2, "--resume-from-checkpoint", "latest")
    os.rename(data / "dog", data / "bird")
    refused = skipdit(*on)
    assert refused.code == 2 and "labels: cat 0 then, 1 now" in refused.stderr
    os.rename(data / "bird", data / "dog")
    os.rename(data, tmp_path / "moved")
    assert skipdit(*on, "--data", tmp_path / "moved").code == 0

    lay_out(tmp_path / "more", "dog/0.png", "cat/0.png", "bird/0.png")
    second = skipdit("finetune", "-m", tmp_path / "run", *run[4:], "--data", tmp_path / "more", "-o", tmp_path / "two")
    assert second.code == 2 and "class folder bird, which is none of the model's classes" in second.stderr


def test_names_of_classes_in_a_model_of_videos(skipdit, latte_pipeline, tmp_path):
    frames = [f"{name}/v/{i}.png" for name in ("run", "walk") for i in range(4)]
    ran = skipdit(
        *("finetune", "-m", latte_pipeline(), "--data", lay_out(tmp_path / "data", *frames), "-o", tmp_path / "run"),
        *("--train", "all", "--train-batch-size", 1, "--max-train-steps", 1),
    )
    assert ran.code == 0, ran.stderr
    sampled = ("sample", "-m", tmp_path / "run", "--class-labels", "walk", "--steps", 2, "-o", tmp_path / "a.gif")
    ran = skipdit(*sampled)
    assert ran.code == 0, ran.stderr
    assert media.read_metadata(tmp_path / "a.gif")["settings"]["class_labels"] == "1"


def test_frames_are_picked_by_time():
    assert pick_by_time(np.arange(24) / 24, 8).tolist() == list(range(0, 24, 3))
    assert pick_by_time(np.round(np.arange(24) / 24, 3), 8).tolist() == list(range(0, 24, 3))
    assert pick_by_time(np.arange(8) / 8, 16).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert pick_by_time(np.array([0, 0.1, 0.5, 0.6]), 10).tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert pick_by_time(np.zeros(1), 8).tolist() == [0]


def test_one_rate_for_videos_of_many(tmp_path, capsys):
    counted = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 16 * 16 * 3).reshape(24, 16, 16, 3)
    for name, fps in (("fast", 24), ("slow", 12)):
        (tmp_path / name).mkdir()
        media.save_video(counted, tmp_path / name / "a.mp4", fps, {})
    demand = Demand(num_classes=2, video_length=4)
    samples = read(tmp_path, demand, span=4)
    said = capsys.readouterr().err
    assert "differ in frames a second (1 of 24, 1 of 12)" in said and "--fps-target 12" in said
    assert samples.lengths == [24, 24] and samples.fps_target is None
    samples = read(tmp_path, demand, span=4, fps_target=6)
    assert samples.lengths == [6, 12] and capsys.readouterr().err == ""
    levels = [[round(np.asarray(frame).mean() / 10) for frame in samples.read(i, [0, 1, 2, 3])] for i in (0, 1)]
    assert levels == [[0, 4, 8, 12], [0, 2, 4, 6]]
    read(tmp_path, demand, span=4, fps_target=24)
    assert "1 of 2 videos have less than --fps-target 24" in capsys.readouterr().err
    assert "2 of 2 videos" in refused(tmp_path, demand, span=13, fps_target=6)
    assert "have no times" in refused("moving-digits", demand, fps_target=6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--fps-target", 0), "more than 0"),
        (("--fps-target", 8, "--frame-stride", 2), "give one"),
        (("--fps-target", 1), "this model makes images"),
    ],
)
def test_the_flag_of_rates(skipdit, converted, tmp_path, flags, said):
    ran = skipdit("finetune", "-m", converted(), "--data", "digits", "-o", tmp_path / "run", *flags)
    assert ran.code == 2 and said in ran.stderr and not (tmp_path / "run").exists()
