"""Models that are none, or are damaged, and asks that a model cannot meet: refused before any weights are read."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffusers
import pytest
from safetensors.torch import load_file, save_file

from tests.support.tiny_pipelines import build, write_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMANDS = {
    "convert": "convert {m} -o out",
    "sample": "sample -m {m} -o out.png --prompt cat --steps 2",
    "info": "info {m}",
    "bench": "bench -m {m} --prompt cat --steps 2 -o out",
    "finetune": "finetune -m {m} --data {m} -o out --train all",
}
READS = ("convert", "sample", "bench")
"""Those that look at weights before anything else than texts and sizes."""
MAKES = ("sample", "bench")


class Case(NamedTuple):
    """
    Args:
        spoil: What is done to a copy of a tiny Flux pipeline.
        says: Part of the sentence.
        commands: Those that are tried; all of ``COMMANDS`` if not given.
    """

    name: str
    spoil: Callable[[Path], None]
    says: str
    commands: tuple[str, ...] = tuple(COMMANDS)


def edit(file: str, **changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def index(**changes) -> Callable[[Path], None]:
    return edit("model_index.json", **changes)


def write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text)


def without(part: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / part)


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


def only(*names: str, **texts: str) -> Callable[[Path], None]:
    """The files of ``transformer/`` of these names alone, and others of these stems."""

    def spoil(folder: Path) -> None:
        for name in names:
            shutil.copy(folder / "transformer" / name, folder.parent / name)
        shutil.rmtree(folder)
        folder.mkdir()
        for name in names:
            (folder.parent / name).rename(folder / name)
        for stem, ending in texts.items():
            (folder / f"{stem}.{ending}").write_bytes(b"GGUF")

    return spoil


def quantised(method: str, part: str = "transformer") -> Callable[[Path], None]:
    return edit(f"{part}/config.json", quantization_config={"quant_method": method})


def shards(weight_map: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / "one.safetensors")
        (folder / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def as_dtype(dtype: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        import torch

        file = folder / "transformer" / WEIGHTS
        wide = load_file(file)
        save_file({name: t.to(getattr(torch, dtype)) if t.ndim > 1 else t for name, t in wide.items()}, file)

    return spoil


FOO, UNKNOWN = ["diffusers", "FooTransformer2DModel"], "FooTransformer2DModel, which diffusers"
CASES = [
    Case("unknown transformer", index(transformer=FOO), UNKNOWN),
    Case("unknown pipeline", index(_class_name="FooPipeline"), "is a FooPipeline, which diffusers"),
    Case("pipeline with code of its own", index(_class_name=["my_pipeline", "Own"]), "is a Own with code of its own"),
    Case("pipeline without a name", index(_class_name=None), "without _class_name"),
    Case("pipeline that is a model", index(_class_name="AutoencoderKL"), "AutoencoderKL, which is no pipeline"),
    Case("UNet", index(transformer=None, unet=["diffusers", "UNet2DConditionModel"]), "denoises with its unet"),
    Case("UNet's pipeline", index(_class_name="StableDiffusionPipeline"), "has no transformer trunk"),
    Case("transformer of null", index(transformer=[None, None]), "has no transformer trunk"),
    Case("transformer that is a text", index(transformer="FluxTransformer2DModel"), "which is no [library, class]"),
    Case("transformer that is a decoder", index(transformer=["diffusers", "AutoencoderKL"]), "no transformer trunk",
         ("convert", "sample", "info", "bench")),
    Case("config of a UNet", edit("transformer/config.json", _class_name="UNet2DModel"), "holds a UNet2DModel",
         ("convert", "sample", "info", "bench")),
    Case("index of no JSON", write("model_index.json", "{oops"), "model_index.json cannot be read as JSON"),
    Case("index of a list", write("model_index.json", "[1]"), "holds a list"),
    Case("config of no JSON", write("transformer/config.json", "oops"), "config.json cannot be read as JSON"),
    Case("decoder's config of no JSON", write("vae/config.json", "oops"), "vae/config.json cannot be read"),
    Case("scheduler of no JSON", write("scheduler/scheduler_config.json", "oops"), "scheduler_config.json cannot be"),
    Case("tokenizer of no JSON", write("tokenizer/tokenizer.json", "oops"), "tokenizer.json cannot be read"),
    *(Case(f"no {part}", without(part), f"lacks its folder {part}/")
      for part in ("transformer", "scheduler", "vae", "tokenizer", "text_encoder")),
    Case("scheduler of null", index(scheduler=[None, None]), "has no scheduler"),
    Case("text encoder of null", index(text_encoder=[None, None]), "has no text_encoder", ("sample",)),
    Case("text encoders of null", index(**dict.fromkeys(("text_encoder", "text_encoder_2"), [None, None])),
         "has no text encoder to read a --prompt with", MAKES),
    Case("cut transformer", cut(f"transformer/{WEIGHTS}"), "is damaged or cut short", READS),
    Case("cut decoder", cut(f"vae/{WEIGHTS}"), "is damaged or cut short", READS),
    Case("cut text encoder", cut("text_encoder/model.safetensors"), "is damaged or cut short", READS),
    Case("pointer of LFS", write(f"transformer/{WEIGHTS}", "version https://git-lfs.github.com/spec/v1\n"),
         "git lfs pull", READS),
    Case("shard that is missing", shards({"a": "two.safetensors"}), "lacks two.safetensors", READS),
    Case("shard outside", shards({"a": "../vae/x.safetensors"}), "lacks ../vae/x.safetensors", READS),
    Case("shards of no kind", shards(3), "lacks its shards", READS),
    Case("quantised for branches", quantised("bitsandbytes"), "is quantised (bitsandbytes)", ("convert", "finetune")),
    *(Case(f"quantised by {method}", quantised(method), f"pip install {package}", MAKES) for method, package in
      {"quanto": "optimum-quanto", "bitsandbytes": "bitsandbytes", "torchao": "torchao", "gguf": "gguf"}.items()),
    Case("quantised text encoder", quantised("bitsandbytes", "text_encoder"), "text_encoder quantised by", MAKES),
    Case("quantised by something new", quantised("newquant"), "by 'newquant', which is not read here", MAKES),
    Case("whole numbers", as_dtype("int8"), "in whole numbers, as quantised models do", READS),
    Case("layers kept in float8", as_dtype("float8_e4m3fn"), "float8_e4m3fn, which is for keeping", ("convert",)),
    Case("nothing there", only(), "holds no model"),
    Case("weights alone", only(WEIGHTS), f"holds {WEIGHTS}, but no model_index.json"),
    Case("GGUF", only(flux="gguf"), "holds flux.gguf, but no model_index.json"),
    Case("LoRA", only(pytorch_lora_weights="safetensors"), "holds a LoRA"),
    Case("transformer alone", only("config.json", WEIGHTS), "one part of a pipeline (FluxTransformer2DModel)",
         ("sample", "bench", "finetune")),
    Case("branches of nothing", lambda folder: (folder / "skip_2").mkdir(), "but no transformer_2",
         ("convert", "sample", "info", "bench")),
]  # fmt: skip


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "flux"
    build("flux").save_pretrained(folder)
    return folder


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def assert_refused(ended, said: str) -> None:
    lines = ended.stderr.splitlines()
    assert ended.exception is None and ended.code == 2 and len(lines) == 1, ended.stderr
    assert lines[0].startswith("Error: ") and said in lines[0], lines[0]
    assert ended.json == {"schema": 1, "error": lines[0].removeprefix("Error: "), "exit_code": 2}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_damaged_model_is_refused_by_every_command(case, flux, skipdit, tmp_path, monkeypatch):
    model, here = tmp_path / "model", tmp_path / "here"
    shutil.copytree(flux, model)
    case.spoil(model)
    here.mkdir()
    monkeypatch.chdir(here)
    before = tree(model)
    for command in case.commands:
        assert_refused(skipdit(*shlex.split(COMMANDS[command].format(m=model)), "--json"), case.says)
        assert tree(model) == before and tree(here) == {}


ASKED = [
    ("a" * 300 + "/b", "--prompt cat", "is no folder here"),
    ("flux", "--class-labels 1", "this is a text-conditional"),
    ("flux", "--prompt cat --pipeline-arg foo=1", "It takes prompt_2, negative_prompt_2, true_cfg_scale"),
    ("flux", "--prompt cat --num-frames 4", "makes images"),
    ("flux", "--prompt cat --negative-prompt dog", "guidance is off"),
    ("flux", "--prompt cat --cache-layers 3", "the model has 6 blocks, valid 1..2"),
    ("flux", "--prompt cat -o out.mp4", "expected a .png"),
    ("wan-2.1", "--prompt cat -o out.mp4 --image {image}", "a WanPipeline does not take"),
    ("wan-2.2", "--prompt cat -o out.mp4 --cache-layers 2", "the model has 4 blocks, valid 1..1"),
    ("sound", "--prompt cat", "A StableAudioPipeline makes no pictures"),
    ("protein", "", "takes neither prompts nor class labels"),
    ("dit", "--prompt cat", "a class-conditional model"),
    ("dit", "--class-labels 10", "0..9"),
    ("dit", "--class-labels 1 --cache-layers 3", "valid 1..2"),
    ("dit", "--class-labels 1 --guidance-scale 2 --image {image}", "only a text-conditional"),
]


@pytest.fixture(scope="module")
def hollow(tmp_path_factory, flux, tiny_dit) -> Path:
    """Models whose weights cannot be read."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("hollow")
    shutil.copytree(flux, folder / "flux")
    build("wan-2.1").save_pretrained(folder / "wan-2.1")
    build("wan-2.2").save_pretrained(folder / "wan-2.2")
    edit("wan-2.2/transformer_2/config.json", num_layers=4)(folder)
    write_pipeline(folder / "dit", tiny_dit())
    for name, kind in {"sound": "StableAudioPipeline", "protein": "RFD4ProteinaPipeline"}.items():
        shutil.copytree(folder / "dit", folder / name)
        edit(f"{name}/model_index.json", _class_name=kind)(folder)
    for file in folder.rglob(WEIGHTS):
        file.write_bytes(b"broken")
    Image.new("RGB", (16, 16)).save(folder / "image.png")
    return folder


@pytest.mark.parametrize(("model", "flags", "said"), ASKED, ids=[f"{model} {flags}" for model, flags, _ in ASKED])
def test_what_a_model_cannot_make_is_refused_without_its_weights(model, flags, said, hollow, skipdit, tmp_path,
                                                                 monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if model == "protein" and not hasattr(diffusers, "RFD4ProteinaPipeline"):
        pytest.skip("this diffusers does not have it")
    where = model if len(model) > 99 else hollow / model
    flags = shlex.split(flags.format(image=hollow / "image.png"))
    assert_refused(
        skipdit(
            "sample",
            "-m",
            where,
            "-o",
            "out.png",
            "--steps",
            2,
            *flags,
            "--json",
        ),
        said,
    )
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("flags", ["--class-labels 1", "--prompt cat --cache-layers 3"])
def test_bench_refuses_without_weights_too(flags, hollow, skipdit):
    ended = skipdit("bench", "-m", hollow / "flux", "--steps", 2, *flags.split(), "--json")
    assert_refused(ended, "--class-labels 1, but" if "class" in flags else "valid 1..2")


def test_a_size_that_the_pipeline_would_round_is_refused(flux, skipdit, tmp_path):
    run = ("sample", "-m", flux, "--prompt", "cat", "-o", tmp_path / "out.png", "--steps", 2, "--width", 16)
    assert_refused(skipdit(*run, "--height", 17, "--json"), "--height 17 but expected a multiple of 2")


def test_no_file_is_written_over_what_is_read_or_not_ours(tiny_pipeline, skipdit, tmp_path):
    model, letters = tiny_pipeline(), tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("dear")
    (tmp_path / "link").symlink_to(model)
    bench = ("bench", "-m", model, "--steps", 2, "--rounds", 1, "--overwrite", "--json")
    convert = ("convert", model, "--overwrite", "--json")
    train = ("finetune", "-m", model, "--data", "digits", "--train", "all", "--max-train-steps", 1, "--json")
    for run, output, said in (
        (convert, model, "is the model itself"),
        (convert, tmp_path / "link", "is the model itself"),
        (convert, model / "sub", "lies inside the model"),
        (convert, tmp_path, "lies in"),
        (convert, letters, "letter.txt and no .skipdit.json"),
        (("convert", model / "transformer", "--overwrite", "--json"), model, "lies in"),
        (bench, model, "is the model itself"),
        (bench, model / "sub", "lies inside the model"),
        (bench, letters, "letter.txt and no .skipdit.json"),
        (("demo", "--overwrite", "--json"), letters, "letter.txt and no .skipdit.json"),
        (train, model / "sub", "lies inside the model"),
    ):
        before = tree(tmp_path)
        assert_refused(skipdit(*run, "-o", output), said)
        assert tree(tmp_path) == before


def test_overwrite_of_a_link_replaces_what_it_leads_to(tiny_pipeline, skipdit, tmp_path):
    model, target = tiny_pipeline(), tmp_path / "target"
    assert skipdit("convert", model, "-o", target).code == 0
    (tmp_path / "link").symlink_to(target)
    assert skipdit("convert", model, "-o", tmp_path / "link", "--overwrite", "--merge", "replace").code == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((target / "skip" / "config.json").read_text())["merge"] == "replace"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target", "tiny"]


def test_branches_of_a_newer_format_are_refused(converted, skipdit, tmp_path):
    model = converted()
    edit("skip/config.json", gate=1)(model)
    for run in (("sample", "-m", model, "-o", tmp_path / "out.png", "--class-labels", 0), ("info", model)):
        assert_refused(skipdit(*run, "--json"), "unknown key 'gate'")


def test_layers_kept_in_float8_are_converted_to_another_dtype(flux, skipdit, tmp_path):
    shutil.copytree(flux, tmp_path / "narrow")
    as_dtype("float8_e4m3fn")(tmp_path / "narrow")
    ended = skipdit("convert", tmp_path / "narrow", "-o", tmp_path / "out", "--dtype", "bfloat16", "--json")
    assert ended.code == 0 and ended.json["bitwise_equal"] is True, ended.stderr


def test_weights_that_are_no_numbers_are_named(tiny_pipeline, skipdit, tmp_path):
    model = tiny_pipeline()
    file = model / "transformer" / WEIGHTS
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    ended = skipdit("convert", model, "-o", tmp_path / "out", "--json")
    assert ended.code == 1 and "in its transformer, nan in " in ended.json["error"], ended.stderr
    assert "branches" not in ended.stderr and not (tmp_path / "out").exists()


def test_aliases_in_the_environment(tiny_pipeline, skipdit, tmp_path, monkeypatch):
    run = ("sample", "-m", tiny_pipeline(), "--class-labels", 0, "--json", "-o")
    for number, name in enumerate(("STEPS", "NUM_INFERENCE_STEPS")):
        made = skipdit(*run, tmp_path / f"{number}.png", env={f"SKIPDIT_SAMPLE_{name}": "3"})
        assert made.json["settings"]["num_inference_steps"] == 3
    ended = skipdit(*run, tmp_path / "out.png", env={"SKIPDIT_SAMPLE_STESP": "3"})
    assert_refused(ended, "Did you mean 'SKIPDIT_SAMPLE_STEPS'")


def test_a_replay_from_another_folder_says_how_to_name_the_model(tiny_pipeline, skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_pipeline().parent)
    made = skipdit("sample", "-m", "tiny", "--class-labels", 0, "--steps", 2, "-o", "a.png")
    assert made.code == 0, made.stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_refused(skipdit("sample", "--from", "../a.png", "-o", "b.png", "--json"), "or give -m MODEL")
    assert skipdit("sample", "--from", "../a.png", "-m", "../tiny", "-o", "b.png").code == 0


def test_the_hub_is_not_waited_for_and_its_refusals_are_named(skipdit, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    from skipdit_cli.models import hub as online

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(online, "answers", lambda endpoint: False)
    assert_refused(skipdit("info", "a/b", "--json"), "try again when the hub answers")
    monkeypatch.setattr(online, "answers", lambda endpoint: True)
    for kind, said in (
        (errors.GatedRepoError, "is gated: accept its terms at https://huggingface.co/a/b"),
        (errors.RevisionNotFoundError, "has no revision v9"),
        (errors.RepositoryNotFoundError, "is not on the hub, or it is private"),
        (getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError), "is no pipeline of diffusers"),
    ):
        refusal = kind.__new__(kind)

        def refuse(*arguments, refusal=refusal, **keywords):
            raise refusal

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        assert_refused(skipdit("info", "a/b", "--revision", "v9", "--json"), said)
