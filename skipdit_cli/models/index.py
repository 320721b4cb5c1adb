"""A pipeline folder as its JSON files and the headers of its weights describe it: checked before weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families import class_named, family_of
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.families.registry import former_names, own_classes, pipelines_by_class
from skipdit_cli.models.bounds import stored_shapes
from skipdit_cli.models.build import as_named_now, check_transformer, is_transformer
from skipdit_cli.models.claims import check_part
from skipdit_cli.models.packages import importable
from skipdit_cli.models.variants import files_in
from skipdit_cli.models.weights import check_weights, read_json
from skipdit_cli.quiet import quiet
from skipdit_cli.skip import SKIP, skip_folder

INDEX = "model_index.json"
READERS = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "gguf": "gguf",
    "modelopt": "nvidia-modelopt",
    "auto-round": "auto-round",
}
"""The package that reads a model of a ``quant_method``."""
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


def check_index(name, folder: Path, given: Iterable[str] = (), weights: bool = True, plain: bool = False) -> dict:
    """What the ``model_index.json`` of a pipeline folder holds, once all that it lists is there and can be read here.

    Args:
        name: Of the model, as the user gave it.
        given: Parts that are not taken from the folder.
        weights: Look at the files of weights, too (at their headers alone).
        plain: Refuse a quantised transformer: branches are made for, and trained on, plain weights.
    Raises:
        UsageError: It denoises with no transformer; or its class, a part, a file or a package to read one is missing
            or damaged.
    """
    index = read_json(folder / INDEX)
    check_denoiser(name, index)
    kind = pipeline_class(name, index)
    if "transformer" not in _parts_of_class(kind):
        raise UsageError(f"Model {name} is a {kind.__name__}, which has no transformer trunk.")
    if index.get("scheduler") in (None, [None, None]) and "scheduler" in _parts_of_class(kind):
        raise UsageError(f"Model {name} has no scheduler ({INDEX} names none); give the folder of the whole pipeline.")
    for part in TRANSFORMERS:
        if (folder / skip_folder(part)).is_dir() and index.get(part) in (None, [None, None]):
            raise UsageError(
                f"Model {name} has {skip_folder(part)}/ but no {part}, which it would be of; take it out."
            )
    _check_labels(name, index.get("id2label"))
    required, _ = kind._get_signature_keys(kind)
    for part, value in index.items():
        listed = isinstance(value, list) or part in TRANSFORMERS or part in required
        if listed and value not in (None, [None, None]) and part not in given:
            _check_part(name, folder / part, value, weights, plain)
    return index


def _check_labels(name, labels: object) -> None:
    if labels is None:
        return
    if not isinstance(labels, dict) or not all(
        key.isascii() and key.isdigit() and isinstance(label, str) for key, label in labels.items()
    ):
        raise UsageError(f"Model {name} has a {INDEX} with an id2label that is not names by class, such as 0: cat.")


def _parts_of_class(kind) -> set[str]:
    required, optional = kind._get_signature_keys(kind)
    return {*required, *optional}


def _check_part(name, folder: Path, value: object, weights: bool, plain: bool) -> None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise UsageError(f"Model {name} has a {INDEX} with {folder.name}: {value}, which is no [library, class].")
    if not folder.is_dir():
        raise UsageError(f"Model {name} lacks its folder {folder.name}/, which {INDEX} names; fetch it again.")
    if value[0] == "diffusers" and is_unknown(value[1]):
        raise UsageError(f"Model {name} has a {folder.name} of class {_newer(value[1])}")
    if not _is_known(value[0]):  # diffusers would import whatever is installed under that name
        raise UsageError(
            f"Model {name} has a {folder.name} of the library '{value[0]}', which no pipeline is made of."
        )
    for file in files_in(folder, "*.json"):
        if file.name.endswith("config.json") or file.name == "tokenizer.json":
            read_json(file)
    config = folder / "config.json"
    if config.is_file():
        if plain and folder.name in TRANSFORMERS:
            check_plain(folder)
        elif weights and not plain:
            _check_quantised(name, folder.name, read_json(config).get("quantization_config"), value[0])
    elif folder.name in TRANSFORMERS:
        raise UsageError(f"Model {name} lacks {folder.name}/config.json; fetch it again.")
    if weights:
        check_weights(folder, floating=folder.name in TRANSFORMERS and not is_quantised(folder))
        if folder.name not in TRANSFORMERS:  # whose class may have another name by now: see transformer_config
            check_part(folder, *value)


def _is_known(library: str) -> bool:
    import diffusers

    own = library.partition(".")[0] == "skipdit_cli" or library in own_classes().values()
    return own or library in ("diffusers", "transformers") or hasattr(diffusers.pipelines, library)


def is_quantised(folder: Path) -> bool:
    """Whether the config of a part says so."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def _check_quantised(name, part: str, config: object, library: str) -> None:
    """Raise ``UsageError`` unless the package that reads weights of this kind is installed."""
    if not config:
        return
    method = config.get("quant_method") if isinstance(config, dict) else config
    package = READERS.get(method) if isinstance(method, str) else None
    if package is None and library != "diffusers":  # transformers has more, and says what they want
        return
    if package is None:
        known = f"; known are {', '.join(READERS)}"
        raise UsageError(f"Model {name} has a {part} quantised by '{method}', which is not read here{known}.")
    if not is_installed(package):
        raise UsageError(
            f"Model {name} has a {part} quantised by {method}, which needs one more package; run pip install "
            f"{package}, or give the model without quantisation."
        )


def pipeline_class(name, index: dict):
    """The class of a pipeline: one of ours where it is of classes, else diffusers'.

    Raises:
        UsageError: It names none, or one that the installed diffusers does not have or lacks a package for.
    """
    import diffusers

    kind = index.get("_class_name")
    if isinstance(kind, str) and kind in own_classes():
        return class_named(kind)
    if isinstance(kind, list) and kind:
        raise UsageError(
            f"Model {name} is a {kind[-1]} with code of its own, which is not run; give a pipeline of diffusers."
        )
    if not isinstance(kind, str):
        raise UsageError(f"Model {name} has a {INDEX} without _class_name; fetch it again.")
    with quiet(errors_only=True, text=of_texts(index)):  # of packages that no model here needs
        if is_unknown(kind):
            raise UsageError(f"Model {name} is a {_newer(kind)}")
        found = getattr(diffusers, kind)
    if hasattr(found, "_backends"):  # what diffusers puts in the place of a class that it cannot import
        wants = ", ".join(found._backends)
        raise UsageError(f"Model {name} is a {kind}, for which diffusers wants {wants}; install what is missing.")
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise UsageError(f"Model {name} has a {INDEX} with _class_name {kind}, which is no pipeline of diffusers.")
    return found


def of_texts(index: dict) -> bool:
    """Whether the class of a pipeline comes with the library ``transformers``."""
    return str(index.get("_class_name")) not in pipelines_by_class() and importable("transformers")


def is_unknown(name) -> bool:
    """Whether diffusers, and we, have no class of this name at all."""
    import diffusers

    return str(name) not in own_classes() and not hasattr(diffusers, str(name))


def _newer(name) -> str:
    import diffusers

    others = [known for known in dir(diffusers) if known.endswith(("Pipeline", "Model"))]
    hint = nearest(str(name), others)
    return f"{name}, which diffusers {diffusers.__version__} does not have; a newer one may.{hint}"


def check_denoiser(name, index: dict) -> None:
    """
    Raises:
        UsageError: What a pipeline denoises with is no transformer (a UNet, say).
    """
    if index.get("transformer") in (None, [None, None]):
        kind, others = index.get("_class_name"), [part for part in ("unet", "prior", "decoder") if index.get(part)]
        with_what = f": it denoises with its {others[0]}" if others else ""
        raise UsageError(f"Model {name} is a {kind}, which has no transformer trunk{with_what}.")


def transformer_config(folder: Path, index: dict | None = None) -> dict:
    """The config of a transformer's folder, with its class under the name that it has now.

    Args:
        index: Of its pipeline, which names the class, too.
    Raises:
        UsageError: It is missing or damaged, of a class that is no transformer of diffusers, or of two.
    """
    config = read_json(folder / "config.json")
    listed = (index or {}).get(folder.name) or [None, None]
    named = [kind for kind in (config.get("_class_name"), listed[1]) if kind is not None]
    if not named:
        raise UsageError(f"Folder {folder} has a config.json without _class_name, so it is no part of a pipeline.")
    for kind in named:
        if is_unknown(kind):
            raise UsageError(f"Folder {folder} holds a {_newer(kind)}")
        if not is_transformer(kind):
            raise UsageError(
                f"Folder {folder} holds a {kind}, which has no transformer trunk; see 'skipdit info --families'."
            )
    former = former_names()
    if named[0] != named[-1] and not former.keys() & {*named}:
        raise UsageError(
            f"Folder {folder} holds a {named[0]} by its config.json, but a {named[-1]} by {INDEX}; mend the wrong one."
        )
    said = named[0] if named[0] in former.get(named[-1], {}).values() else named[-1]
    config = as_named_now({**config, "_class_name": said})
    check_transformer(config, f"Folder {folder}", stored_shapes(folder))
    return config


def check_plain(folder: Path) -> None:
    """Raise ``UsageError`` where a transformer is quantised: branches are made for, and trained on, plain weights."""
    if is_quantised(folder):
        config = read_json(folder / "config.json")["quantization_config"]
        how = config.get("quant_method", "some way") if isinstance(config, dict) else config
        raise UsageError(
            f"Folder {folder} is quantised ({how}), and skip branches need plain weights; give the model without "
            "quantisation (quantised ones can be sampled as they are)."
        )


def is_part(folder: Path) -> bool:
    """Whether a folder holds one part of a pipeline: a transformer that was saved by itself, say."""
    # pathlib's own raise where the text is too long for a path
    return os.path.isfile(folder / "config.json") and not os.path.isfile(folder / INDEX)


def check_folder(folder: Path) -> None:
    """Raise ``UsageError`` unless a folder holds a pipeline; the sentence says what it holds."""
    if (folder / INDEX).is_file():
        return
    if is_part(folder):
        config = read_json(folder / "config.json")
        kind = config.get("_class_name") or str((config.get("architectures") or ["a part"])[0])
        way = "give the folder of the whole pipeline"
        if (folder / SKIP).exists():
            way = "put it into the folder of a whole one, as transformer/ (and its skip/ beside that)"
        elif family_of(kind).pipeline is not None or kind in former_names():
            way = f"run 'skipdit convert -m {folder} -o FOLDER' first"
        raise UsageError(f"Folder {folder} holds one part of a pipeline ({kind}), no {INDEX}; {way}.")
    if (folder / SKIP).is_dir():
        raise UsageError(f"Folder {folder} holds skip/ alone, no {INDEX}; put skip/ into the folder of its model.")
    lora = next((name for name in LORA_FILES if (folder / name).is_file()), None)
    if lora is not None:
        raise UsageError(f"Folder {folder} holds a LoRA ({lora}), no model; give its model, and this with --lora.")
    files = sorted(
        file.name for pattern in ("*.safetensors", "*.gguf", "*.bin", "*.pt") for file in folder.glob(pattern)
    )
    if files:
        raise UsageError(
            f"Folder {folder} holds {files[0]}, but no {INDEX}; give the folder of a pipeline as diffusers writes it."
        )
    raise UsageError(f"Folder {folder} holds no model ({INDEX} is missing); give a pipeline folder or a hub id.")


def is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def parts_of(pipeline: Path | None) -> list[str]:
    """The component folders that a pipeline's index lists."""
    if pipeline is None:
        return []
    index = read_json(pipeline / INDEX)
    return [name for name, value in index.items() if isinstance(value, list) and value != [None, None]]
