"""A pipeline folder as its JSON files and the headers of its weights describe it: checked before weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families import class_named, family_of
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.families.registry import former_names, own_classes, pipelines_by_class
from skipdit_cli.models.bounds import stored_shapes
from skipdit_cli.models.build import as_named_now, check_transformer, is_transformer
from skipdit_cli.models.claims import check_part
from skipdit_cli.models.packages import check_plain, check_quantised, importable, is_quantised
from skipdit_cli.models.weights import check_weights, files_in, read_json
from skipdit_cli.quiet import quiet
from skipdit_cli.skip import SKIP, skip_folder

INDEX = "model_index.json"
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


def has_part(index: dict, part: str) -> bool:
    """Return whether a ``model_index.json`` lists a part with a class: ``[null, null]`` stands for a part left out."""
    return index.get(part) not in (None, [None, None])


def parts_of(pipeline: Path | None) -> list[str]:
    """Return the folders of a pipeline's parts, as its ``model_index.json`` lists them; none of None."""
    if pipeline is None:
        return []
    index = read_json(pipeline / INDEX)
    return [name for name, value in index.items() if isinstance(value, list) and has_part(index, name)]


def is_part(folder: Path) -> bool:
    """Return whether a folder holds one part of a pipeline, such as a transformer that was saved by itself."""
    # pathlib's own raises where the text is too long for a path
    return os.path.isfile(folder / "config.json") and not os.path.isfile(folder / INDEX)


def check_folder(folder: Path) -> None:
    """Check that a folder holds a pipeline.

    Raises:
        UsageError: It has no ``model_index.json``; the sentence says what it holds in its place.
    """
    if (folder / INDEX).is_file():
        return
    if is_part(folder):
        config = read_json(folder / "config.json")
        kind = config.get("_class_name") or str((config.get("architectures") or ["a part"])[0])
        advice = "give the folder of the whole pipeline"
        if (folder / SKIP).exists():
            advice = "put it into the folder of a whole one, as transformer/ (and its skip/ beside that)"
        elif family_of(kind).pipeline is not None or kind in former_names():
            advice = f"run 'skipdit convert -m {folder} -o FOLDER' first"
        raise UsageError(f"Folder {folder} holds one part of a pipeline ({kind}), no {INDEX}; {advice}.")
    if (folder / SKIP).is_dir():
        raise UsageError(f"Folder {folder} holds skip/ alone, no {INDEX}; put skip/ into the folder of its model.")
    lora = next((name for name in LORA_FILES if (folder / name).is_file()), None)
    if lora is not None:
        raise UsageError(f"Folder {folder} holds a LoRA ({lora}), no model; give its model, and this with --lora.")
    patterns = ("*.safetensors", "*.gguf", "*.bin", "*.pt")
    names = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
    if names:
        raise UsageError(
            f"Folder {folder} holds {names[0]}, but no {INDEX}; give the folder of a pipeline as diffusers writes it."
        )
    raise UsageError(f"Folder {folder} holds no model ({INDEX} is missing); give a pipeline folder or a hub id.")


def check_index(name, folder: Path, replaced: Iterable[str] = (), weights: bool = True, plain: bool = False) -> dict:
    """Read the ``model_index.json`` of a pipeline folder, and check that all it lists is there and can be read here.

    Configs are checked against their classes, and against the headers of the weight files beside them.

    Args:
        name: The model, as the user named it.
        replaced: Parts that the caller brings, which are not loaded from the folder.
        weights: Check the headers of the weight files, too.
        plain: Refuse a quantised transformer: skip branches are made for, and trained on, plain weights.
    Returns:
        The content of ``model_index.json``.
    Raises:
        UsageError: The pipeline has no transformer; or its class, a part, a file or a package to read one is missing
            or damaged.
    """
    index = read_json(folder / INDEX)
    check_denoiser(name, index)
    kind = pipeline_class(name, index)
    required, optional = kind._get_signature_keys(kind)
    if "transformer" not in {*required, *optional}:
        raise UsageError(f"Model {name} is a {kind.__name__}, which has no transformer trunk.")
    if not has_part(index, "scheduler") and "scheduler" in {*required, *optional}:
        raise UsageError(f"Model {name} has no scheduler ({INDEX} names none); give the folder of the whole pipeline.")
    for part in TRANSFORMERS:
        if (folder / skip_folder(part)).is_dir() and not has_part(index, part):
            raise UsageError(
                f"Model {name} has {skip_folder(part)}/ but no {part}, which it would be of; take it out."
            )
    _check_labels(name, index.get("id2label"))
    for part, value in index.items():
        listed = isinstance(value, list) or part in TRANSFORMERS or part in required
        if listed and has_part(index, part) and part not in replaced:
            _check_part(name, folder / part, value, weights, plain)
    return index


def check_denoiser(name, index: dict) -> None:
    """Check that a pipeline denoises with a transformer.

    Raises:
        UsageError: It has none; the sentence says what it denoises with (a UNet, say).
    """
    if not has_part(index, "transformer"):
        kind, others = index.get("_class_name"), [part for part in ("unet", "prior", "decoder") if index.get(part)]
        denoiser = f": it denoises with its {others[0]}" if others else ""
        raise UsageError(f"Model {name} is a {kind}, which has no transformer trunk{denoiser}.")


def _check_labels(name, labels: object) -> None:
    if labels is None:
        return
    if not isinstance(labels, dict) or not all(
        key.isascii() and key.isdigit() and isinstance(label, str) for key, label in labels.items()
    ):
        raise UsageError(f"Model {name} has a {INDEX} with an id2label that is not names by class, such as 0: cat.")


def _check_part(name, folder: Path, value: object, weights: bool, plain: bool) -> None:
    """Check one part that the index lists: its class, its JSON files, and with ``weights`` its weight files."""
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise UsageError(f"Model {name} has a {INDEX} with {folder.name}: {value}, which is no [library, class].")
    if not folder.is_dir():
        raise UsageError(f"Model {name} lacks its folder {folder.name}/, which {INDEX} names; fetch it again.")
    library, kind = value
    if library == "diffusers" and _is_unknown(kind):
        raise UsageError(f"Model {name} has a {folder.name} of class {_newer(kind)}")
    if not _is_library(library):  # diffusers would import whatever is installed under that name
        raise UsageError(f"Model {name} has a {folder.name} of the library '{library}', which no pipeline is made of.")
    for file in files_in(folder, "*.json"):
        if file.name.endswith("config.json") or file.name == "tokenizer.json":
            read_json(file)
    is_denoiser = folder.name in TRANSFORMERS
    if (folder / "config.json").is_file():
        if plain and is_denoiser:
            check_plain(folder)
        elif weights and not plain:
            check_quantised(name, folder, library)
    elif is_denoiser:
        raise UsageError(f"Model {name} lacks {folder.name}/config.json; fetch it again.")
    if weights:
        check_weights(folder, floating=is_denoiser and not is_quantised(folder))
        if not is_denoiser:  # a transformer's class may have another name by now: see transformer_config
            check_part(folder, library, kind)


def _is_library(name: str) -> bool:
    """Return whether parts of a pipeline may come from a library."""
    import diffusers

    own = name.partition(".")[0] == "skipdit_cli" or name in own_classes().values()
    return own or name in ("diffusers", "transformers") or hasattr(diffusers.pipelines, name)


def pipeline_class(name, index: dict):
    """Return the class of a pipeline: ours if it is class-conditional, else diffusers'.

    Args:
        name: The model, as the user named it.
        index: The content of its ``model_index.json``.
    Raises:
        UsageError: The index names no class, or one that the installed diffusers does not have or lacks a package for.
    """
    import diffusers

    class_name = index.get("_class_name")
    if isinstance(class_name, str) and class_name in own_classes():
        return class_named(class_name)
    if isinstance(class_name, list) and class_name:
        raise UsageError(
            f"Model {name} is a {class_name[-1]} with code of its own, which is not run; give a pipeline of diffusers."
        )
    if not isinstance(class_name, str):
        raise UsageError(f"Model {name} has a {INDEX} without _class_name; fetch it again.")
    with quiet(errors_only=True, text=needs_transformers(index)):  # importing warns of packages no model here needs
        if _is_unknown(class_name):
            raise UsageError(f"Model {name} is a {_newer(class_name)}")
        kind = getattr(diffusers, class_name)
    if hasattr(kind, "_backends"):  # diffusers' placeholder for a class that it cannot import
        packages = ", ".join(kind._backends)
        raise UsageError(
            f"Model {name} is a {class_name}, for which diffusers wants {packages}; install what is missing."
        )
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise UsageError(
            f"Model {name} has a {INDEX} with _class_name {class_name}, which is no pipeline of diffusers."
        )
    return kind


def needs_transformers(index: dict) -> bool:
    """Return whether loading a pipeline imports the library ``transformers``: a text-conditional one does."""
    return str(index.get("_class_name")) not in pipelines_by_class() and importable("transformers")


def _is_unknown(name) -> bool:
    """Return whether neither diffusers nor this package has a class of this name."""
    import diffusers

    return str(name) not in own_classes() and not hasattr(diffusers, str(name))


def _newer(name) -> str:
    """End a sentence about a class that the installed diffusers does not have."""
    import diffusers

    others = [known for known in dir(diffusers) if known.endswith(("Pipeline", "Model"))]
    hint = nearest(str(name), others)
    return f"{name}, which diffusers {diffusers.__version__} does not have; a newer one may.{hint}"


def transformer_config(folder: Path, index: dict | None = None) -> dict:
    """Read the config of a transformer's folder, check it, and give its class the name that diffusers has for it now.

    Args:
        index: The content of its pipeline's ``model_index.json``, which names the class, too.
    Raises:
        UsageError: The config is missing or damaged, does not fit the weight files, is of a class that is no
            transformer of diffusers, or config and index name two classes.
    """
    config = read_json(folder / "config.json")
    listed = (index or {}).get(folder.name) or [None, None]
    names = [kind for kind in (config.get("_class_name"), listed[1]) if kind is not None]
    if not names:
        raise UsageError(f"Folder {folder} has a config.json without _class_name, so it is no part of a pipeline.")
    for kind in names:
        if _is_unknown(kind):
            raise UsageError(f"Folder {folder} holds a {_newer(kind)}")
        if not is_transformer(kind):
            raise UsageError(
                f"Folder {folder} holds a {kind}, which has no transformer trunk; see 'skipdit info --families'."
            )
    if names[0] != names[-1] and not former_names().keys() & {*names}:
        raise UsageError(
            f"Folder {folder} holds a {names[0]} by its config.json, but a {names[-1]} by {INDEX}; mend the wrong one."
        )
    name = names[0] if names[0] in former_names().get(names[-1], {}).values() else names[-1]
    config = as_named_now({**config, "_class_name": name})
    check_transformer(config, f"Folder {folder}", stored_shapes(folder))
    return config
