"""Training data in Hugging Face `datasets` and in WebDataset shards, without a network."""

import io
import json
import re
import tarfile
from contextlib import nullcontext

import datasets
import numpy as np
import pytest
from PIL import Image

from skipdit_cli.commands.training_options import ConsoleObserver
from skipdit_cli.errors import UsageError
from skipdit_cli.training import TrainingSettings
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.observer import Observer
from skipdit_cli.training.sources import hub_datasets
from skipdit_cli.training.sources.read_source import read_source

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CLASSES, TEXTS, NOTHING = Demand(num_classes=10), Demand(captions=True), Demand()
PICTURES = [Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)) for i in range(6)]


def read(data, demand=CLASSES, tmp=None, **flags):
    return read_source(TrainingSettings(data=str(data), output=tmp, **flags), demand)


def refused(data, demand=CLASSES, **flags) -> str:
    with pytest.raises(UsageError) as caught:
        read(data, demand, **flags)
    return str(caught.value)


def png(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a data set with splits: pictures, labels with names, and captions."""
    folder = tmp_path_factory.mktemp("hf") / "shapes"
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["circle", "square"]), text=datasets.Value("string")
    )
    rows = {"image": PICTURES, "label": [0, 1] * 3, "text": [f"shape {i}" for i in range(6)]}
    train = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(train=train, test=train.select(range(2))).save_to_disk(folder)
    return folder


def write_tar(path, members: dict[str, bytes | str]):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples each: a picture, a label, a caption and a JSON member."""
    for shard in range(3):
        members = {}
        for i in (2 * shard, 2 * shard + 1):
            record = json.dumps({"label": 9 - i, "title": f"json {i}"})
            members |= {f"{i:04}.png": png(PICTURES[i]), f"{i:04}.cls": f"{i}\n", f"{i:04}.txt": f"shape {i}"}
            members |= {f"{i:04}.json": record}
        write_tar(tmp_path / "shards" / f"{shard:03}.tar", members)
    return tmp_path / "shards"


def test_a_saved_data_set_has_pictures_labels_names_and_captions(saved):
    samples = read(f"hf:{saved}")
    assert (len(samples), samples.conditions, samples.labels) == (6, [0, 1] * 3, {"circle": 0, "square": 1})
    assert all(np.array_equal(samples.read(i, [0])[0], picture) for i, picture in enumerate(PICTURES))
    assert len(read(f"hf:{saved}:test")) == 2
    assert read(f"hf:{saved}", TEXTS).conditions == [f"shape {i}" for i in range(6)]
    assert read(f"hf:{saved}", NOTHING).conditions == [None] * 6
    named = Demand(num_classes=10, class_names={"square": (3,), "circle": (7,)})
    assert read(f"hf:{saved}", named).conditions == [7, 3] * 3  # the model's label of each name
    assert read(f"hf:{saved}").files == samples.files != read(f"hf:{saved}:test").files


def test_columns_are_found_by_type_or_named(tmp_path):
    rows = {"a": PICTURES[:2], "b": PICTURES[:2], "one": [1, 2], "two": [["x y", "z"], ["v w", "u"]]}
    table = datasets.Dataset.from_dict(rows).cast_column("a", datasets.Image()).cast_column("b", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    source = f"hf:{tmp_path / 'saved'}"
    assert "--image-column" in refused(source) and "a, b" in refused(source)
    assert "--label-column" in refused(source, image_column="a")
    assert read(source, image_column="a", label_column="one").conditions == [1, 2]
    assert read(source, TEXTS, image_column="b").conditions == ["x y", "v w"]
    assert "Did you mean 'one'?" in refused(source, image_column="a", label_column="oen")
    assert "which is a column of" in refused(source, image_column="one")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace("data-00000", "../other-00000"))
    assert "outside of the folder" in refused(source, image_column="a", label_column="one")


def test_parquet_files_are_read_as_the_hub_stores_them(tmp_path, monkeypatch):
    cells = [{"bytes": png(picture), "path": None} for picture in PICTURES[:2]]
    table = datasets.Dataset.from_dict({"image": cells, "label": [4, 5]})
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    table.select([0]).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert read(f"hf:{tmp_path}").conditions == [4, 5]
    assert read(f"hf:{tmp_path}:validation").conditions == [4]
    assert "Did you mean 'validation'?" in refused(f"hf:{tmp_path}:validatoin")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert "the cache of `datasets`, is not a writable folder; name another" in refused(f"hf:{tmp_path}")


def test_pictures_that_are_named_and_not_held_are_read_from_the_folder_alone(tmp_path):
    outside, folder = tmp_path / "outside.png", tmp_path / "data"
    folder.mkdir()
    for path in (outside, folder / "inside.png"):
        PICTURES[0].save(path)
    for name, said in (
        ("inside.png", None),
        (str(outside), "--allow-outside"),
        ("https://example.org/a.png", "not read"),
    ):
        path = str(folder / name) if name == "inside.png" else name
        datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}]}).to_parquet(folder / "train.parquet")
        if said is None:
            assert len(read(f"hf:{folder}", NOTHING)) == 1
        else:
            warnings = []
            observer = Observer()
            observer.warn = lambda message, topic=None: warnings.append(message)  # noqa: B023
            with pytest.raises(UsageError):
                read_source(TrainingSettings(data=f"hf:{folder}", output=None), NOTHING, observer=observer)
            assert said in warnings[0]


def test_what_is_no_data_set_is_refused(skipdit, converted, saved, tmp_path):
    assert "a folder of images is --data" in refused(f"hf:{converted()}")
    assert "give a folder" in refused(f"hf:{saved}", Demand(video_length=4))
    run = ("finetune", "-m", converted("again"), "-o", tmp_path / "run")
    for flags, said in (
        (("--data", "digits", "--image-column", "a"), "--image-column a"),
        (("--data", f"hf:{saved}", "--dataset-config-name", "a"), "--dataset-config-name a"),
        (("--data", "hf:"), "names no data set"),
        (("--data", "wds:https://example.org/{0..9}.tar"), "download them first"),
        (("--data", "wds:{0..999999999}.tar"), "the shard 000000000.tar"),
    ):
        outcome = skipdit(*run, *flags)
        assert outcome.code == 2 and said in outcome.stderr and not (tmp_path / "run").exists()


def test_a_missing_package_names_its_extra(skipdit, converted, saved, tmp_path, monkeypatch):
    from skipdit_cli.training import data_source

    monkeypatch.setattr(data_source.importlib.util, "find_spec", lambda name: None)
    outcome = skipdit("finetune", "-m", converted(), "--data", f"hf:{saved}", "-o", tmp_path / "run")
    assert outcome.code == 2 and "pip install 'skipdit-cli[data]'" in outcome.stderr


def test_a_preset_fetches_no_data(skipdit, converted, saved, tmp_path):
    preset = tmp_path / "foreign.yaml"
    run = ("finetune", "-m", converted(), "--preset", preset, "-o", tmp_path / "run", "--max-train-steps", 1)
    preset.write_text("finetune: {data: 'hf:owner/pictures', train-batch-size: 2}\n")
    outcome = skipdit(*run)
    assert outcome.code == 2 and "has to be typed" in outcome.stderr
    preset.write_text(f"finetune: {{data: 'hf:{saved}', train-batch-size: 2}}\n")
    assert skipdit(*run).code == 0


def test_shards_are_read_in_place(shards):
    samples = read(f"wds:{shards}/{{000..002}}.tar")
    assert samples.conditions == list(range(6))
    assert all(np.array_equal(samples.read(i, [0])[0], picture) for i, picture in enumerate(PICTURES))
    assert read(shards / "*.tar").conditions == list(range(6)) and len(read(shards / "001.tar")) == 2
    assert read(f"wds:{shards}/{{000,002}}.tar", TEXTS).conditions == [f"shape {i}" for i in (0, 1, 4, 5)]
    assert read(shards / "*.tar", TEXTS, caption_column="title").conditions[0] == "json 0"
    assert read(shards / "*.tar", NOTHING).conditions == [None] * 6
    assert "000.tar: 0000.png" in samples.name(0)


def test_bad_shards_are_refused(shards, tmp_path):
    whole = (shards / "000.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:700])
    assert "damaged" in refused(cut) or "cut off" in refused(cut)
    assert "which is not a file" in refused(f"wds:{shards}/{{000..003}}.tar")
    assert "000.tar twice" in refused(f"wds:{shards}/{{000,001,000}}.tar")
    assert "matches no file" in refused(f"wds:{shards}/x*.tar")
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(shards / "000.tar", "000.png")
    assert "neither compressed" in refused(packed)
    picture = png(PICTURES[0])
    for number, (members, demand, said) in enumerate(
        (
            ({"a.png": picture}, CLASSES, "without a class label"),
            ({"a.png": picture, "a.cls": "cat"}, CLASSES, "without a class label"),
            ({"a.png": picture, "a.cls": "12"}, CLASSES, "label 12"),
            ({"a.png": picture, "a.txt": "x" * (1 << 21)}, TEXTS, "2,097,152 bytes"),
            ({"a.png": picture, "a.json": "[" * 5000}, TEXTS, "cannot be read as JSON"),
            ({"a.png": b"no picture", "a.cls": "1"}, CLASSES, "cannot be read"),
            ({"a.in.png": picture, "a.out.png": picture}, NOTHING, "--image-column in.png"),
            ({"a.cls": "1"}, CLASSES, "no image"),
        )
    ):
        source = write_tar(tmp_path / f"bad{number}.tar", members)
        if said == "label 12":
            with pytest.raises(UsageError, match=said):
                read(source).check_labels(10)
        else:
            assert said in refused(source, demand)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "headers, said",
    [
        (header("a.png", -512), "-512|beyond"),
        (header("a.png", 1 << 62), "beyond the end"),
        (header("a.png", 0) + header("b.png", 1600), "beyond the end"),
        (header("pax", 1 << 40, tarfile.XHDTYPE), "1099511627776 bytes"),
        (header("a.png", 0) + header("b.png", 0).replace(b"b", b"c", 1), "checksum"),
        (header("a.png", 0, tarfile.GNUTYPE_SPARSE), "is sparse"),
        ((header("x", 2, tarfile.GNUTYPE_LONGNAME) + b"a\0".ljust(512, b"\0")) * 2000, "RecursionError"),
        (b"", "empty"),
    ],
)
def test_damaged_and_hostile_headers_are_refused(tmp_path, headers, said):
    (tmp_path / "a.tar").write_bytes(headers + bytes(1024) * bool(headers))
    assert re.search(said, refused(tmp_path / "a.tar", NOTHING))


def test_links_in_shards_are_not_followed(tmp_path):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        content = png(PICTURES[0])
        entry = tarfile.TarInfo("../b.png")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        hidden = tarfile.TarInfo("._b.png")
        tar.addfile(hidden)
    samples = read(path, NOTHING)
    assert len(samples) == 1 and samples.left_out == "left out: 1 links or special files"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["hf", "wds"])
def test_a_run_on_packed_data_resumes_exactly(skipdit, converted, saved, shards, tmp_path, kind):
    data = f"hf:{saved}" if kind == "hf" else f"wds:{shards}/{{000..002}}.tar"
    run = ("finetune", "-m", converted(), "--data", data, "--train-batch-size", 2, "--num-train-epochs", 2)
    outcome = skipdit(*run, "-o", tmp_path / "whole", "--checkpointing-steps", 4)
    assert outcome.code == 0, outcome.stderr
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == pytest.approx([step / 3 for step in range(1, 7)], abs=1e-4)
    resume = ("--resume-from-checkpoint", tmp_path / "whole" / "checkpoint-4", "--dataloader-num-workers", 2)
    assert skipdit(*run, "-o", tmp_path / "whole", *resume).code == 0
    again = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
    names = json.loads((tmp_path / "whole" / "model_index.json").read_text()).get("id2label")
    assert names == ({"0": "circle", "1": "square"} if kind == "hf" else None)


def test_epochs_and_steps_exclude_each_other(skipdit, converted, saved, tmp_path, monkeypatch):
    notes = []
    progress = nullcontext(lambda count=1, note="": notes.append(note))
    monkeypatch.setattr(ConsoleObserver, "progress", lambda self, description, total: progress)
    run = ("finetune", "-m", converted(), "--data", f"hf:{saved}", "--train-batch-size", 4, "-o", tmp_path / "run")
    outcome = skipdit(*run, "--num-train-epochs", 1, "--max-train-steps", 3)
    assert outcome.code == 2 and "give one" in outcome.stderr
    preset = tmp_path / "long.yaml"
    preset.write_text("finetune: {max-train-steps: 900}\n")
    outcome = skipdit(*run, "--preset", preset, "--num-train-epochs", 1, "--json")
    assert outcome.code == 0 and outcome.json["steps"] == 2  # 6 samples in batches of 4
    assert notes[-1].startswith("epoch 1.00 of 1, loss ")


def test_the_hub_is_asked_for_a_split_and_a_configuration(saved, monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return datasets.load_from_disk(str(saved))["train"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read("hf:owner/shapes:train[:6]", dataset_config_name="small")) == 6
    assert calls == [(("owner/shapes", "small"), {"split": "train[:6]"})]
    assert hub_datasets.SPLIT == "train"

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert "takes for all files in and below the current folder" in refused("hf:json")
    assert "cannot be loaded and is not a folder here (ConnectionError: Couldn't" in refused("hf:owner/shapes")
