"""The tensors of a sharded training run in a checkpoint: each process writes its shards, and any number reads them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from skipdit_cli.errors import SkipditError, first_line, reading
from skipdit_cli.files import checksum
from skipdit_cli.formats import UntrustedFile

INDEX = ".metadata"
"""The file of torch.distributed.checkpoint that says which part of which tensor lies in which file."""
SHARDS = "*.distcp"
WEIGHT, AVERAGE = "weight", "average"
"""The prefixes of the names of trained weights and of their averages; the optimizer's have the names of its state."""
ADVICE = "resume from an earlier one"


def is_sharded(folder: Path) -> bool:
    """Return whether the tensors of a checkpoint are in shards."""
    return (folder / INDEX).is_file()


def split_optimizer(state: dict, parameters: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors of an optimizer's state dict that are as large as their parameters, by name, and its rest.

    Args:
        state: The state dict of the optimizer.
        parameters: The parameters by name, in the order of the optimizer.
    """
    tensors: dict[str, torch.Tensor] = {}
    rest = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        values = state["state"].get(number, {})
        large = {key for key, value in values.items() if torch.is_tensor(value) and value.shape == parameter.shape}
        large -= {"step"}  # of a parameter that is one number
        tensors |= {f"{key}.{name}": values[key] for key in large}
        rest[number] = {key: value for key, value in values.items() if key not in large}
    return tensors, {**state, "state": rest}


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int) -> dict[str, str]:
    """Write this process's shards of tensors into a folder that all processes share.

    Returns:
        The checksums of the files that this process wrote, by name.
    Raises:
        SkipditError: A process could not write its shards.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, checkpoint_id=str(folder))
    except CheckpointException as cause:
        raise SkipditError(first_line(next(iter(cause.failures.values()))[0])) from cause
    own = sorted(folder.glob(f"__{rank}_{SHARDS}"))
    return {path.name: checksum(path) for path in (*own, *([folder / INDEX] if rank == 0 else []))}


def read_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read tensors, or this process's shards of them, in place.

    Raises:
        UsageError: The checkpoint is damaged.
    """
    with reading(f"Checkpoint {folder}", ADVICE), warnings.catch_warnings(), _first_failure():
        warnings.simplefilter("ignore")
        dcp.load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=_Reader(str(folder)))


def shapes_in(folder: Path) -> dict[str, torch.Size]:
    """Return the shapes of the tensors in shards by name.

    Raises:
        UsageError: The checkpoint is damaged.
    """
    with reading(f"Checkpoint {folder}", ADVICE):
        metadata = _Reader(str(folder)).read_metadata()
    entries = metadata.state_dict_metadata.items()
    return {name: entry.size for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise what the first process met, in place of torch's collection of tracebacks."""
    try:
        yield
    except CheckpointException as cause:
        raise next(iter(cause.failures.values()))[0] from cause


class _Reader(dcp.FileSystemReader):
    """Reads the shards of a folder, and nothing but tensors: its index is a pickle, which could run code."""

    def read_metadata(self, *args, **kwargs) -> Metadata:
        with UntrustedFile(Path(self.path) / INDEX) as file:
            metadata = _Unpickler(file).load()
        entries, places = metadata.state_dict_metadata, metadata.storage_data or {}
        if not all(isinstance(entry, TensorStorageMetadata) for entry in entries.values()):
            raise pickle.UnpicklingError(f"{INDEX} lists more than tensors")
        if not all(Path(place.relative_path).name == place.relative_path for place in places.values()):
            raise pickle.UnpicklingError(f"{INDEX} names a file in another folder")
        return metadata


class _Unpickler(pickle.Unpickler):
    """Accepts the classes of torch.distributed.checkpoint's index alone."""

    def find_class(self, module: str, name: str):
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):
            return PurePath  # where it was saved, perhaps on another system
        allowed = {
            "torch": {"Size"},
            "torch.serialization": {"_get_layout"},
            "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
            "torch.distributed.checkpoint.metadata": {
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            },
        }
        if name not in allowed.get(module, ()):
            raise pickle.UnpicklingError(f"{INDEX} refers to {module}.{name}")
        return super().find_class(module, name)
