"""Data sets of Hugging Face `datasets`: of the hub, saved by ``save_to_disk``, or a folder of Parquet files.

Code of a data set is never run (`datasets` 4 cannot run any). A picture that a row names by its path is read only from
the folder of the data set, and one that a row names by an address is not read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError, first_line, nearest, reading
from skipdit_cli.formats import parse_json, read_text
from skipdit_cli.training.data.class_folders import DATA_SET, OF_MODEL, Classes
from skipdit_cli.training.data.data_folder import Bounds
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.metadata import CAPTION_KEYS, Condition, check_caption, check_label
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.data_source import DataSource
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.sources.packed_pictures import Columns, sample_set
from skipdit_cli.training.sources.parquet_files import load_parquet

LABEL_KEYS = ("label", "labels")
KINDS_OF_FILES = re.compile(
    "arrow|audiofolder|conll|csv|eval|fast[aq]|genbank|harbor|hdf5|iceberg|imagefolder|json|lance|meshfolder|mmcif|"
    "niftifolder|pandas|parquet|pdb|pdffolder|sql|text|tsfile|videofolder|vortex|webdataset|xml"
)
"""Names that ``datasets.load_dataset`` takes for kinds of files in place of data sets."""
LARGEST_STATE = 1 << 24
"""Bytes of a ``state.json``."""
SPLIT = "train"
"""The split that is read where none is named."""


@dataclass(frozen=True)
class Rows:
    """The column of encoded pictures of a table.

    Args:
        table: A `datasets.Dataset` of this column alone.
        bounds: Where pictures may lie that the table names by path.
    """

    table: Any
    column: str
    source: str
    bounds: Bounds

    def load(self, row: int) -> bytes:
        """Return the encoded picture of a row.

        Raises:
            UsageError: The row holds none, or names a file that may not be read.
        """
        cell = self.table[row][self.column] or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        path = cell.get("path")
        if not path:
            raise UsageError(f"Got {self.name(row)} without a picture.")
        if "://" in path or "\0" in path:
            raise UsageError(
                f"Got {self.name(row)}, which names {path!r} in place of a picture; addresses are not read."
            )
        self.bounds.check(Path(path))
        with reading(f"Got {self.name(row)}, whose file {path}"):
            return Path(path).read_bytes()

    def name(self, row: int) -> str:
        """Return ``hf:NAME row N``."""
        return f"{self.source} row {row}"


def read_hub_dataset(
    source: DataSource,
    demand: Demand,
    columns: Columns,
    config_name: str | None = None,
    allow_outside: bool = False,
    observer: Observer = SILENT,
) -> SampleSet:
    """Return the samples of a data set, one per row.

    Args:
        columns: Names of columns; those that are None are found by the types of the features.
        config_name: The configuration of a data set of the hub.
        allow_outside: Whether pictures named by path may lie outside the folder of a local data set.
    Raises:
        UsageError: The data set cannot be loaded, or its columns are not what the model requires.
    """
    import datasets

    name = f"hf:{source.name}"
    table = _from_folder(Path(source.name), source) if source.path is not None else _from_hub(source, config_name)
    if source.path is not None:
        with reading(f"Got --data {name}, which", "expected a folder that save_to_disk wrote"):
            table.data.validate(full=True)  # Arrow follows offsets out of a damaged file, which ends the process
    features = dict(table.features)
    image = _choose("--image-column", columns.image, features, _is_image, (), name)
    conditions: list[Condition] = [None] * len(table)
    classes = None
    if demand.captions:
        caption = _choose("--caption-column", columns.caption, features, _is_text, CAPTION_KEYS, name)
        conditions = [_caption(value, f"{name} row {row}") for row, value in enumerate(table[caption][:])]
    elif demand.num_classes is not None:
        label = _choose("--label-column", columns.label, features, _is_class_label, (), name, _is_number, LABEL_KEYS)
        classes, numbers = _classes(getattr(features[label], "names", None), demand, observer)
        conditions = [_label(value, numbers, f"{name} row {row}") for row, value in enumerate(table[label][:])]
    pictures = table.select_columns([image])
    if isinstance(features[image], datasets.Image):
        pictures = pictures.cast_column(image, datasets.Image(decode=False))
    root = source.path if source.path is not None else Path(datasets.config.HF_CACHE_HOME)
    rows = Rows(pictures, image, name, Bounds(root, allow_outside, observer))
    return sample_set(rows, list(enumerate(conditions)), name, classes, observer=observer)


def _from_hub(source: DataSource, config_name: str | None) -> Any:
    import datasets

    if KINDS_OF_FILES.fullmatch(source.name):
        raise UsageError(
            f"Got --data hf:{source.name}, which `datasets` takes for all files in and below the current folder; "
            "expected hf:OWNER/NAME or a folder."
        )
    try:
        return datasets.load_dataset(source.name, config_name, split=source.split or SPLIT)
    except Exception as cause:  # of the hub, the network, the format: dozens of types
        hint = " and is not a folder here" if re.search(r"[/\\]", source.name) else ""
        raise UsageError(
            f"Got --data hf:{source.name}, which cannot be loaded{hint} ({type(cause).__name__}: {first_line(cause)})"
            "; expected hf:OWNER/NAME:SPLIT of a data set on the hub, or a folder that save_to_disk wrote."
        ) from cause


def _from_folder(folder: Path, source: DataSource) -> Any:
    """Load a folder that ``save_to_disk`` wrote, or Parquet files named by their split, as the hub stores them."""
    import datasets

    with reading(f"Got --data hf:{folder}, which", "expected a folder that save_to_disk wrote, or Parquet files"):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            _check_inside(folder)
            loaded = datasets.load_from_disk(str(folder))
            if isinstance(loaded, datasets.DatasetDict):
                return loaded[_split(source, list(loaded))]
            if source.split is not None:
                raise UsageError(f"Got --data hf:{folder}:{source.split}, but the folder has no splits; leave it out.")
            return loaded
        splits: dict[str, list[str]] = {}
        for path in sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]):
            match = re.match(r"([A-Za-z]\w*?)(?:-\d{5}-of-\d{5})?\.parquet$", path.name)
            splits.setdefault(match[1] if match and not path.stem.isdigit() else SPLIT, []).append(str(path))
        if not splits:
            raise UsageError(
                f"Got --data hf:{folder}, in which there is neither a data set of save_to_disk nor a Parquet file; a "
                f"folder of images is --data {folder}."
            )
        return load_parquet(splits[_split(source, list(splits))])


def _check_inside(folder: Path) -> None:
    """Refuse a folder of ``save_to_disk`` whose splits or states name folders or files outside of it.

    Raises:
        UsageError: One does, or is not what ``save_to_disk`` writes.
    """
    if (index := folder / "dataset_dict.json").is_file():
        content = parse_json(read_text(index, LARGEST_STATE), index)
        for name in content.get("splits") or [] if isinstance(content, dict) else []:
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise UsageError(f"Got --data hf:{folder}, whose {index.name} names {name!r}, which is no split.")
    for state in (*folder.glob("state.json"), *folder.glob("*/state.json")):
        content = parse_json(read_text(state, LARGEST_STATE), state)
        files = content.get("_data_files") if isinstance(content, dict) else None
        for file in files or []:
            name = file.get("filename") if isinstance(file, dict) else None
            path = state.parent / str(name)
            if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise UsageError(f"Got --data hf:{folder}, whose {state.name} names {name}, outside of the folder.")


def _split(source: DataSource, splits: list[str]) -> str:
    """Return the split to read: the one that is named, ``train``, or the only one."""
    split = source.split or (splits[0] if len(splits) == 1 else SPLIT)
    if split not in splits:
        raise UsageError(
            f"Got --data hf:{source.name}:{split}, but its splits are {', '.join(splits)}.{nearest(split, splits)}"
        )
    return split


def _choose(flag: str, column: str | None, features: dict, fits, keys: tuple[str, ...], name: str, *fallback) -> str:
    """Return the column that a flag names, or the only one whose type fits, or of several the one of a usual name.

    Args:
        fits: Returns whether a feature is of the type of the column.
        fallback: Another such function, and the names that a column of that type must have.
    Raises:
        UsageError: There is no such column, or there are several.
    """
    if column is not None:
        if column not in features:
            raise UsageError(
                f"Got {flag} {column}, but {name} has the columns {', '.join(features)}.{nearest(column, features)}"
            )
        if not (fits(features[column]) or (fallback and fallback[0](features[column]))):
            raise UsageError(f"Got {flag} {column}, which is a column of {_type(features[column])} in {name}.")
        return column
    fitting = [each for each, feature in features.items() if fits(feature)]
    if not fitting and fallback:
        fitting = [each for each, feature in features.items() if fallback[0](feature) and each in fallback[1]]
    if len(fitting) > 1:
        fitting = [key for key in keys if key in fitting][:1] or fitting
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{each} ({_type(feature)})" for each, feature in features.items())
    problem = f"several fit: {', '.join(fitting)}" if fitting else f"none of its columns fits: {listed}"
    raise UsageError(f"Got --data {name} without {flag}, and {problem}; give {flag} NAME.")


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _is_image(feature: Any) -> bool:
    """Return whether a column holds pictures, perhaps in a Parquet file that does not say so."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_class_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_number(feature: Any) -> bool:
    return not _is_class_label(feature) and re.match(r"u?int", _type(feature)) is not None


def _is_text(feature: Any) -> bool:
    """Return whether a column holds texts, or lists of texts."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _caption(value: object, name: str) -> str:
    """Return a caption; of several captions of one picture, the first."""
    try:
        return check_caption(value[0] if isinstance(value, list) and value else value)
    except ValueError as cause:
        raise UsageError(f"Got {name}, where {cause}.") from cause


def _label(value: object, numbers: dict[int, int], name: str) -> int:
    try:
        label = check_label(value)
    except ValueError as cause:
        raise UsageError(f"Got {name}, whose {cause}.") from cause
    return numbers.get(label, label)


def _classes(names: list[str] | None, demand: Demand, observer: Observer) -> tuple[Classes | None, dict[int, int]]:
    """Return the labels of the classes of a ``ClassLabel``, and the model's label for each of the data set's.

    A class that has the name of one of the model's gets its label, as a class folder does.
    """
    if not names:
        return None, {}
    if not all(isinstance(name, str) for name in names):
        raise UsageError("Got a data set with class names that are no texts; save it again with names of its classes.")
    known = {name for name in names if len(demand.class_names.get(name, ())) == 1}
    if len(known) == len(names):
        labels = {name: demand.class_names[name][0] for name in names}
        return Classes(labels, OF_MODEL, "classes"), {number: labels[name] for number, name in enumerate(names)}
    if demand.class_names and not all(name.isdecimal() for name in names):
        observer.warn(
            "the class names of the data set are not those of the model; its classes keep their own numbers."
        )
    return Classes({name: number for number, name in enumerate(names)}, DATA_SET, "classes"), {}
