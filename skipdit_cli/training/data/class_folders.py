"""Class folders: the label of each."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.training.data.data_folder import FileSet, summary_of
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.observer import SILENT, Observer

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval")
IMAGENET_CLASSES = 1000
NUMBERS, OF_MODEL, IMAGENET, SORTED = "by their numbers", "by the model's names", "in ImageNet's order", "sorted"
DATA_SET = "as the data set numbers them"
SHOWN = 12


@dataclass(frozen=True)
class Classes:
    """The labels of class folders, or of the classes of a data set.

    Args:
        labels: The label of each folder, by its name.
        order: The rule that gave the labels.
        noun: What the labels belong to, in the plural.
    """

    labels: dict[str, int]
    order: str = SORTED
    noun: str = "class folders"

    def of(self, folder: str) -> int:
        """Return the label of a class folder."""
        return self.labels[_normal(folder)]

    def __str__(self) -> str:
        pairs = [f"{name} {label}" for name, label in self.labels.items()]
        shown = pairs if len(pairs) <= SHOWN else [*pairs[: SHOWN // 2], "...", pairs[-1]]
        return f"Labels of the {self.noun}, {self.order}: {', '.join(shown)}."


def read_classes(
    root: Path, folders: list[Path], file_set: FileSet, demand: Demand, observer: Observer = SILENT
) -> Classes:
    """Return the labels of the class folders in a data folder.

    Args:
        folders: The folders directly in the data folder.
        file_set: All files below it.
    Raises:
        UsageError: The folders are no classes, one is empty, or two mean the same class.
    """
    if not folders:
        return Classes({})
    _check_level(root, folders, file_set, demand)
    _check_empty(root, folders, file_set, demand)
    _warn_splits(root, file_set, observer)
    names = sorted(_normal(folder.name) for folder in folders)
    _check_twins(root, folders, observer)
    numbers = [name for name in names if name.isdecimal()]
    if numbers and len(numbers) < len(names):
        other = next(name for name in names if not name.isdecimal())
        raise UsageError(
            f"Got --data {root} with class folders of numbers ({numbers[0]}) and of names ({other}); name all by "
            "their labels, or none."
        )
    if numbers:
        return Classes({name: int(name) for name in sorted(names, key=int)}, NUMBERS)
    return (
        _of_model(root, names, demand, observer)
        or _of_imagenet(names, demand, observer)
        or Classes({name: label for label, name in enumerate(names)})
    )


def _normal(name: str) -> str:
    """Return one spelling of a name: macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", name)


def check_splits(root: Path, folders: list[Path], demand: Demand) -> None:
    """Refuse ``train/`` and ``val/`` directly in the data folder: they are splits of a data set and no classes.

    Raises:
        UsageError: There are several, or a class-conditional model has no other folders.
    """
    splits = [folder for folder in folders if folder.name.casefold() in SPLITS]
    if len(splits) > 1 or (splits and demand.num_classes is not None and len(splits) == len(folders)):
        raise UsageError(
            f"Got --data {root} with {' and '.join(folder.name for folder in splits)}, which by the name is part of a "
            f"data set and no class; give --data {first_split(splits, lambda folder: folder.name)}."
        )


def first_split(paths: list[Path], name: Callable[[Path], str]) -> Path:
    """Return the path of the split to train on.

    Args:
        name: Gives the name of the split that a path is of.
    """
    order = {split: i for i, split in enumerate(SPLITS)}
    return min(paths, key=lambda path: (order.get(name(path).casefold(), len(SPLITS)), path))


def _check_level(root: Path, folders: list[Path], file_set: FileSet, demand: Demand) -> None:
    """Refuse a single folder that all the class folders lie in."""
    if len(folders) != 1 or demand.num_classes == 1:
        return
    level, names = folders[0], [folders[0].name]
    while len(names) == 1:
        samples = [sample for sample in file_set.samples if level in sample.parents]
        names = sorted({sample.relative_to(level).parts[0] for sample in samples})
        if any(sample.parent == level for sample in samples):
            return  # it holds samples itself, so it is a class
        level = level / names[0] if len(names) == 1 else level
    if names:
        check_splits(level, [level / name for name in names], demand)
        raise UsageError(
            f"Got --data {root} with one class folder, {folders[0].name}, whose {demand.kind} lie in folders of their "
            f"own ({', '.join(names[:3])}); give --data {level} if those are the classes."
        )


def _warn_splits(root: Path, file_set: FileSet, observer: Observer) -> None:
    """Warn about splits of a data set within its classes: all of them are trained on."""
    subfolders = {sample.relative_to(root).parts[1] for sample in file_set.samples}
    splits = sorted(name for name in subfolders if name.casefold() in SPLITS)
    if len(splits) > 1:
        observer.warn(f"the class folders hold parts of a data set ({', '.join(splits)}), and all are taken.")


def _check_empty(root: Path, folders: list[Path], file_set: FileSet, demand: Demand) -> None:
    full = {sample.relative_to(root).parts[0] for sample in file_set.samples if sample != root}
    empty = [folder for folder in folders if folder.name not in full]
    if empty:
        left_out = [file for file in file_set.left_out if empty[0] in file.parents]
        files = f" (but {summary_of(left_out, root)})" if left_out else ""
        more = f", and {len(empty) - 1} like it" if len(empty) > 1 else ""
        raise UsageError(
            f"Got --data {root} with the class folder {empty[0].name}, in which there is no {demand.kind[:-1]}{files}"
            f"{more}; fill it or take it out."
        )


def _check_twins(root: Path, folders: list[Path], observer: Observer) -> None:
    """Refuse two names that a person would take for one, and a name that cannot be printed."""
    names: dict[object, str] = {}
    for folder in folders:
        name = folder.name
        if not name.isprintable():
            raise UsageError(
                f"Got --data {root} with the class folder {name!a}, whose name is no plain text; rename it."
            )
        meaning = int(name) if name.isdecimal() else unicodedata.normalize("NFKC", name).casefold().strip()
        former = names.setdefault(meaning, name)
        if former != name and former.casefold() == name.casefold():  # data sets of letters have both
            observer.warn(f"the class folders '{former}' and '{name}' differ in capitals alone; they are two classes.")
        elif former != name:
            raise UsageError(
                f"Got --data {root} with the class folders '{former}' and '{name}', which mean the same; make one of "
                "them."
            )


def _of_model(root: Path, names: list[str], demand: Demand, observer: Observer) -> Classes | None:
    """Return the labels of the model's classes of these names, or None where it has none of them."""
    known = [name for name in names if name in demand.class_names]
    if not known:
        if demand.class_names:
            observer.warn(
                f"none of the class folders in {root} has the name of one of the model's classes; they are numbered "
                "anew."
            )
        return None
    if len(known) < len(names):
        other = next(name for name in names if name not in demand.class_names)
        raise UsageError(
            f"Got --data {root} with the class folder {other}, which is none of the model's classes, as {known[0]} is."
            f"{nearest(other, demand.class_names)} Name all as the model does, or all by their labels."
        )
    for name in names:
        if len(demand.class_names[name]) > 1:
            labels = " and ".join(map(str, demand.class_names[name]))
            raise UsageError(
                f"Got --data {root} with the class folder {name}, which is the name of the model's classes {labels}; "
                "name all folders by their labels."
            )
    return Classes({name: demand.class_names[name][0] for name in names}, OF_MODEL)


def _of_imagenet(names: list[str], demand: Demand, observer: Observer) -> Classes | None:
    """Return ImageNet's labels of its synsets, for a model of as many classes; None if the folders are no synsets."""
    if demand.num_classes != IMAGENET_CLASSES:
        return None
    order = imagenet_order()
    known = [name for name in names if name in order]
    if len(known) == len(names):
        return Classes({name: order[name] for name in names}, IMAGENET)
    if known:
        other = next(name for name in names if name not in order)
        observer.warn(
            f"the class folder {other} is none of ImageNet's 1,000 synsets, so the labels of all, {known[0]} among "
            "them, are not ImageNet's."
        )
    return None


@lru_cache(maxsize=1)
def imagenet_order() -> dict[str, int]:
    """Return the labels of ILSVRC 2012's classes by WordNet id: their positions in sorted order."""
    text = Path(__file__).with_name("imagenet_synsets.txt").read_text(encoding="utf-8")
    return {synset: label for label, synset in enumerate(text.split())}


def record_names(index: Path, classes: Classes | None) -> None:
    """Write ``id2label`` into a ``model_index.json``, as diffusers' ``DiTPipeline`` reads it.

    A model's names of its classes stay, except where its labels now belong to other folders.
    """
    if classes is None or classes.order in (NUMBERS, OF_MODEL):
        return
    config = json.loads(index.read_text(encoding="utf-8"))
    folder_names = {str(label): name for name, label in classes.labels.items()}
    model_names = config.get("id2label") or {}
    names = {**model_names, **folder_names} if classes.order != IMAGENET else {**folder_names, **model_names}
    config["id2label"] = names
    index.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
