"""Files from strangers: whatever is in one, a command that reads it ends soon with one sentence and exit 2, and writes
nothing; what would command a terminal is never printed as it is."""

import json
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from skipdit_cli.errors import UsageError
from skipdit_cli.models.claims import check_part
from tests.support.tiny_pipelines import write_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
ESCAPES = "\x1b[31mred\x1b]8;;http://x\x07\u202e\r\x9b"
COMMANDING = set("\x1b\x07\u202e\r\x9b")
SAMPLE = "sample -m {m} --class-labels 1 --steps 2 --cache-layers 1 -o out.png"
TEXT = "sample -m {m} --prompt cat --steps 2 -o out.png"
HUGE = 10**12
NO_GROUPS = "divisible by num_groups" + " (10000000)" * (Version(torch.__version__) >= Version("2.13"))
"""What torch says of a group norm, in newer versions with its number."""


class Case(NamedTuple):
    """
    Args:
        file: Below the model, or alone.
        change: Keys of its JSON that are set (``...`` leaves one out), or the whole text or bytes.
        says: Part of the sentence.
    """

    file: str
    change: object
    says: str
    command: str = SAMPLE


def transformer(says: str, command: str = SAMPLE, **change) -> Case:
    return Case("dit/transformer/config.json", change, says, command)


def index(says: str, command: str = SAMPLE, **change) -> Case:
    return Case("dit/model_index.json", change, says, command)


def skip(says: str, **change) -> Case:
    return Case("dit/skip/config.json", change, says)


def scheduler(says: str, **change) -> Case:
    return Case("dit/scheduler/scheduler_config.json", change, says)


def of_texts(part: str, says: str, **change) -> Case:
    name = {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")
    return Case(f"flux/{part}/{name}", change, says, TEXT)


INFO, CONVERT = "info {m}", "convert {m}/transformer -o out"
CASES = [
    Case("flux/transformer/config.json", {"axes_dims_rope": [[1], 2, 2]}, "allows no forward", "convert {m} -o out"),
    transformer("num_layers 1000000, which does not work here (more than", num_layers=10**6),
    transformer("num_layers 1000000", INFO, num_layers=10**6),
    transformer("num_layers 1000000", CONVERT, num_layers=10**6),
    transformer("num_attention_heads 10000000", num_attention_heads=10**7),
    transformer("attention_head_dim 1000000000, but expected", attention_head_dim=10**9),
    transformer("sample_size 1000000", sample_size=10**6),
    transformer("num_embeds_ada_norm 2147483648", num_embeds_ada_norm=2**31),
    transformer("is incomplete: its config.json asks for", num_layers=5),
    transformer("does not fit its weight files: by its config.json", attention_head_dim=4),
    transformer("patch_size -9223372036854775808", patch_size=-(2**63)),
    transformer("in_channels -1", in_channels=-1),
    transformer("dropout is nan", dropout=float("nan")),
    transformer("norm_eps is inf", norm_eps=float("inf")),
    transformer("norm_eps '1e-6', but a DiTTransformer2DModel takes a number", norm_eps="1e-6"),
    transformer("norm_eps [1e-06]", norm_eps=[1e-6]),
    transformer("num_layers True, but a DiTTransformer2DModel takes a whole number", num_layers=True),
    transformer("num_layers None", num_layers=None),
    transformer("num_layers [4]", num_layers=[4]),
    transformer("activation_fn 'gelu-epproximate'", activation_fn="gelu-epproximate"),
    transformer("activation_fn 'x'", CONVERT, activation_fn="x"),
    transformer("activation_fn 9", activation_fn=9),
    transformer("holds a ['a']", _class_name=["a"]),
    transformer("\\x1b[31mred", _class_name=ESCAPES),
    transformer("nested more than 64", a=eval("[" * 70 + "]" * 70)),
    Case("dit/transformer/config.json", "[" * 100_000, "cannot be read as JSON"),
    Case("dit/transformer/config.json", b"\xff\xfe{}", "cannot be read"),
    Case("dit/transformer/config.json", '{"num_layers": %s}' % ("9" * 5000), "cannot be read as JSON"),
    index("scheduler: , which is no [library, class]", scheduler=""),
    index("scheduler: 3, which is no", scheduler=3),
    index("scheduler: [['a'], {}]", scheduler=[["a"], {}]),
    index("without _class_name", _class_name=[]),
    index("without _class_name", INFO, _class_name=0),
    index("of the library 'antigravity'", scheduler=["antigravity", "DDIMScheduler"]),
    index("id2label that is not names by class", id2label={"a": 1}),
    index("id2label that is not names by class", id2label=["cat"]),
    skip("num_layers 2147483648", num_layers=2**31),
    skip("num_layers 1000000", num_layers=10**6),
    skip("dim 'x'", dim="x"),
    skip("merge", merge="x\x1b"),
    scheduler("num_train_timesteps 1000000000000", num_train_timesteps=HUGE),
    scheduler("trained_betas []", trained_betas=[]),
    scheduler("trained_betas [0.1, 0.2]", trained_betas=[0.1, 0.2]),
    scheduler("beta_start 'x'", beta_start="x"),
    scheduler("beta_schedule 'x'", beta_schedule="x"),
    scheduler("prediction_type 'red'", prediction_type="red"),
    scheduler("timestep_spacing 'x'", timestep_spacing="x"),
    of_texts("scheduler", "shift is nan", shift=float("nan")),
    of_texts("vae", NO_GROUPS, norm_num_groups=10**7),
    of_texts("vae", "up_block_types True", up_block_types=True),
    of_texts("vae", "layers_per_block 1000000", layers_per_block=10**6),
    of_texts("vae", "latent_channels 1000000000000", latent_channels=HUGE),
    of_texts("vae", "scaling_factor is inf", scaling_factor=float("inf")),
    of_texts("text_encoder_2", "num_layers 1000000", num_layers=10**6),
    of_texts("text_encoder_2", "is incomplete", num_layers=2),
    of_texts("text_encoder_2", "vocab_size 1000000000000", vocab_size=HUGE),
    of_texts("text_encoder", "hidden_size", hidden_size=10**9),
    of_texts("text_encoder", "max_position_embeddings 10000000", max_position_embeddings=10**7),
    of_texts("text_encoder", "hidden_act", hidden_act="x"),
    of_texts("tokenizer", "Model", truncation=""),
    of_texts("tokenizer", "cannot be read", pre_tokenizer={"type": "x"}),
    Case("flux/tokenizer_2/tokenizer_config.json", {"extra_ids": 10**9}, "extra_ids 1000000000", TEXT),
    Case("flux/text_encoder/model.safetensors.index.json",
         {"weight_map": {"a": "../../../../etc/passwd"}, "...": 0}, "lacks ../../../../etc/passwd", TEXT),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_dit) -> Path:
    from skipdit_cli.models import load_pipeline, save_branches
    from skipdit_cli.skip import add_skip_branches
    from tests.support.tiny_pipelines import build

    folder = tmp_path_factory.mktemp("strangers")
    write_pipeline(folder / "dit", tiny_dit(num_layers=4))
    save_branches(add_skip_branches(load_pipeline(folder / "dit").transformer), folder / "dit")
    build("flux").save_pretrained(folder / "flux")
    return folder


def spoil(file: Path, change) -> None:
    if isinstance(change, bytes):
        file.write_bytes(change)
    elif isinstance(change, str):
        file.write_text(change)
    else:
        former = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({key: value for key, value in {**former, **change}.items() if value is not ...}))


def assert_refused(ended, said: str, code: int = 2) -> None:
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert ended.exception is None and ended.code == code, ended.stderr
    assert len(sentences) == 1 and said in sentences[0] and "--debug" not in sentences[0], ended.stderr
    assert not COMMANDING.intersection(ended.stderr + ended.stdout), ended.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}: {case.says[:40]}".replace(" ", "-"))
def test_a_model_of_a_stranger(case, world, skipdit, tmp_path, monkeypatch):
    name, _, inside = case.file.partition("/")
    shutil.copytree(world / name, tmp_path / "model")
    spoil(tmp_path / "model" / inside, case.change)
    if "index.json" in inside and "encoder" in inside:
        (tmp_path / "model" / "text_encoder" / "model.safetensors").unlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert_refused(skipdit(*case.command.format(m=tmp_path / "model").split()), case.says)
    assert not any((tmp_path / "here").iterdir())


MODEL = """
model:
  class: {kind}
  config: {{num_layers: {layers}, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 2, num_embeds_ada_norm: {classes}}}
"""


def test_what_is_ordinary_in_encoders_and_processors_is_read(tmp_path):
    """Names of tensors that transformers translates as it reads, areas of pictures, rope's base: none of them is too
    much, or missing."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    experts = dict(moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, rope_theta=10**9)
    config = Qwen3MoeConfig(intermediate_size=8, vocab_size=32, **sizes, **experts)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    area = {"longest_edge": 25165824, "shortest_edge": 3136}
    processor = {"max_pixels": 12845056, "size": area, "image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "rope_theta": 10**9}))
    check_part(tmp_path, "transformers", "Qwen3MoeForCausalLM")

    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "1.self_attn.o_proj" not in name}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(UsageError, match="asks for model.layers.1.self_attn.o_proj.weight"):
        check_part(tmp_path, "transformers", "Qwen3MoeForCausalLM")


def preset(layers: object = 2, classes: object = 10, kind: str = "DiTTransformer2DModel") -> str:
    return MODEL.format(layers=layers, classes=classes, kind=kind)


LAUGHS = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi"))])  # fmt: skip
TRAIN = "train --preset {p} -o out --data digits --max-train-steps 1"
PRESETS = [
    ("about: 2024-13-45", "month must be in 1..12", INFO),
    (preset("!!timestamp 2001-99-99"), "month must be in 1..12", INFO),
    (preset("2001-01-01"), "is a date", INFO),
    (preset("!!binary aGVsbG8="), "is a bytes", INFO),
    (preset("!!set {a}"), "is a set", INFO),
    (preset("!!python/object/apply:os.system [ls]"), "not readable YAML", INFO),
    (preset(".nan"), "is nan", INFO),
    (preset(".inf"), "is inf", TRAIN),
    (preset("9" * 5000), "not readable YAML", INFO),
    (preset(10**6), "num_layers 1000000, which does not work here (more than 8,000 tensors", INFO),
    (preset(10**6), "num_layers 1000000, which does not work here (more than 8,000 tensors", TRAIN),
    (preset(2, 2**62), "num_embeds_ada_norm 4611686018427387904", INFO),
    (preset(2, -(2**63)), "num_embeds_ada_norm -9223372036854775808", INFO),
    (preset("two"), "num_layers 'two', but a DiTTransformer2DModel takes a whole number", TRAIN),
    (preset("2, num_layers: 3"), "has the key 'num_layers' twice", INFO),
    (preset(kind="load_pipeline"), "load_pipeline", INFO),
    (preset(kind="[a]"), "class: NAME", INFO),
    ("a: " + "[" * 100 + "]" * 100, "nested more than 64", INFO),
    ("[" * 100_000, "nested more than 64", INFO),
    (LAUGHS, "has the alias *a", INFO),
    ("a: &a {<<: *a}", "has the alias *a", INFO),
    ("sample: {seed: 1}\nsample: {seed: 2}", "has the key 'sample' twice", INFO),
    ("sample: {class-labels: [[[1]]]}", "expected one value or a list", INFO),
    ("weights: ../../etc", "expected the name of an embedded model", INFO),
    ("about: [1]", "'about' with a list", INFO),
    ("about: '\\x1b[31m'\n\"\\e[31m\": 1", "unknown key", INFO),
    (b"\xff\xfe\x00", "cannot be read", INFO),
    ("a: " + "x" * 300_000, "no such file has more than", INFO),
    ("- 1", "holds a list", INFO),
]


@pytest.mark.parametrize(("text", "said", "command"), PRESETS, ids=[said[:40] for _, said, _ in PRESETS])
def test_a_preset_of_a_stranger(text, said, command, skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "own.yaml", text)
    command = "info --preset own.yaml" if command is INFO else command.format(p="own.yaml")
    assert_refused(skipdit(*command.split()), said)
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_a_preset_may_name_no_scheduler_but_one_of_diffusers(skipdit, tmp_path):
    for own, said in (
        ("{class: DiffusionPipeline, config: {}}", "which diffusers has not"),
        ("{class: DDIMScheduler, config: {num_train_timesteps: 1000000000000}}", "num_train_timesteps 1000000000000"),
    ):
        spoil(tmp_path / "own.yaml", f"{preset()}  scheduler: {own}\n")
        run = ("bench", "--preset", tmp_path / "own.yaml", "--random-weights", "--steps", 2, "--cache-layers", "1")
        assert_refused(skipdit(*run), said)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def told(text: bytes) -> bytes:
    return png(chunk(b"iTXt", b"skipdit\0\0\0\0\0" + text))


BOMB = zlib.compress(b"[" * 50_000_000)
PICTURES = [
    ("bomb of zTXt", png(chunk(b"zTXt", b"skipdit\0\0" + BOMB)), "cannot be read"),
    ("bomb of iTXt", png(chunk(b"iTXt", b"skipdit\0\1\0\0\0" + BOMB)), "cannot be read"),
    ("bomb of pixels", png(size=(100_000, 100_000)), "cannot be read"),
    ("deep", told(b"[" * 100_000), "does not say how it was made"),
    ("a list", told(b"[1]"), "does not say how it was made"),
    ("settings of a list", told(b'{"settings": [1]}'), "does not say how it was made"),
    ("long number", told(b'{"settings": %s}' % (b"9" * 5000)), "does not say how it was made"),
    ("no UTF-8", told(b"\xff\xfe"), "does not say how it was made"),
    ("cut", told(b"{}")[:60], "cannot be read"),
    ("nothing", b"", "cannot be read"),
]


@pytest.mark.parametrize(("content", "said"), [case[1:] for case in PICTURES], ids=[case[0] for case in PICTURES])
def test_a_picture_of_a_stranger(content, said, skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(content)
    assert_refused(skipdit("sample", "--from", "a.png", "-o", "out.png"), said)
    if said == "cannot be read":
        assert_refused(skipdit("sample", "--preset", "digits", "--image", "a.png", "-o", "out.png"), said)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"skipdit": 3}', "\xff", "", '{"skipdit": {"settings": []}}'])
def test_a_history_of_a_stranger(text, skipdit, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    assert_refused(skipdit("sample", "--from", tmp_path / "a.mp4", "-o", tmp_path / "b.mp4"), "a.json")


class Runs:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.fixture(scope="module")
def official(golden) -> dict:
    import torch

    return torch.load(golden("dit").checkpoint, weights_only=False)


def of_state(change: Callable[[dict], object]) -> Callable[[Path, dict], None]:
    def write(file: Path, data: dict) -> None:
        import copy

        import torch

        torch.save(change(copy.deepcopy(data)), file)

    return write


def weights_of(data: dict) -> dict:
    return data.get("ema") or data.get("model") or data


def changed(name: str, make: Callable) -> Callable[[Path, dict], None]:
    def change(data: dict) -> dict:
        state = weights_of(data)
        state[name] = make(state[name])
        return data

    return of_state(change)


def packed(file: Path, data: dict) -> None:
    of_state(lambda data: data)(file, data)
    with zipfile.ZipFile(file) as opened:
        parts = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in parts.items():
            opened.writestr(name, content + (b"\0" * 10_000_000 if name.endswith("data.pkl") else b""))


LABELS = "y_embedder.embedding_table.weight"
OFFICIAL = {
    "cut": (lambda file, data: file.write_bytes(b"PK\x03\x04" + b"\0" * 100), "cannot be read"),
    "empty": (lambda file, data: file.write_bytes(b""), "cannot be read"),
    "pickle": (lambda file, data: file.write_bytes(pickle.dumps(Runs())), "is refused"),
    "bomb": (packed, "it is compressed"),
    "list": (of_state(lambda data: [1]), "holds no"),
    "number": (of_state(lambda data: 3), "holds no"),
    "tensor alone": (of_state(lambda data: weights_of(data)[LABELS]), "holds no"),
    "no state": (of_state(lambda data: {"ema": {}, "model": None}), "holds no"),
    "sparse": (changed(LABELS, lambda x: x.to_sparse()), "sparse, nested, quantised or complex"),
    "complex": (changed(LABELS, lambda x: x.cfloat()), "sparse, nested, quantised or complex"),
    "without data": (changed(LABELS, lambda x: x.to("meta")), "without data"),
    "expanded": (changed(LABELS, lambda x: x[:1].expand(10**9, -1)), "of which the file holds a part alone"),
    "nothing wide": (changed("x_embedder.proj.weight", lambda x: x[:0]), "which is empty"),
    "another rank": (changed("pos_embed", lambda x: x[0]), "another shape of pos_embed"),
}


@pytest.mark.parametrize(("write", "said"), OFFICIAL.values(), ids=OFFICIAL)
def test_an_official_file_of_a_stranger(write, said, official, skipdit, tmp_path, capfd):
    file = tmp_path / "model.pt"
    write(file, official)
    assert_refused(skipdit("convert", file, "-o", tmp_path / "out", "--num-attention-heads", 2), said)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"] and "ran" not in capfd.readouterr().out


HEADERS = {
    "long": struct.pack("<Q", 2**63 - 1) + b"{}",
    "empty": b"",
    "deep": struct.pack("<Q", 10_000) + b"[" * 10_000,
    "negative": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    "overlapping": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
    b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}',
    "larger than the file": b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}',
    "overflowing": b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(header, world, skipdit, tmp_path):
    shutil.copytree(world / "dit", tmp_path / "model")
    content = header if not header.startswith(b"{") else struct.pack("<Q", len(header)) + header + b"\0" * 8
    for part, said in (("skip", "skip"), ("transformer", "is damaged or cut short")):
        (tmp_path / "model" / part / WEIGHTS).write_bytes(content)
        assert_refused(skipdit(*SAMPLE.format(m=tmp_path / "model").split()), said)


def test_a_checkpoint_that_is_no_torch_file(converted, skipdit, tmp_path, fresh_accelerate):
    run = (
        "finetune",
        "-m",
        converted(num_layers=2),
        "--data",
        "digits",
        "-o",
        tmp_path / "run",
        "--train-batch-size",
        2,
    )
    assert skipdit(*run, "--max-train-steps", 1).code == 0
    (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").write_bytes(b"P")
    ended = skipdit(*run, "--max-train-steps", 2, "--resume-from-checkpoint", tmp_path / "run" / "checkpoint-1")
    assert_refused(ended, "resume from an earlier one")


def test_kept_tensors_of_which_a_bit_flipped_are_made_anew(tmp_path, capsys):
    import torch

    from skipdit_cli.commands.training_options import ConsoleObserver
    from skipdit_cli.training.encoded.section import Section
    from skipdit_cli.training.encoded.tensor_store import Store

    section = Section(Store(tmp_path, ConsoleObserver()), "latents", {"a": 1})

    def encode() -> list[str]:
        encoded = []
        work = section.plan(["one"], lambda: 24)
        section.fill(work, lambda names: ((encoded.append(n) or n, {"moments": torch.arange(6.0)}) for n in names))
        assert torch.equal(section.read("one")["moments"], torch.arange(6.0))
        return encoded

    assert encode() == ["one"] and encode() == []
    file = section.path("one")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert encode() == ["one"] and f"{file} is damaged" in capsys.readouterr().err
    assert encode() == []


def test_nothing_that_is_printed_commands_a_terminal(capsys):
    from skipdit_cli import console

    console.say(f"a {ESCAPES}\nb é 漢字 👨‍👩‍👧 \udcff")
    console.warn(ESCAPES)
    console.error(ESCAPES)
    console.table([ESCAPES], [[ESCAPES]], title=ESCAPES)
    with console.progress(ESCAPES, 1) as advance:
        advance(note=ESCAPES)
    console.trace(ValueError(ESCAPES))
    captured = capsys.readouterr()
    assert not COMMANDING.intersection(captured.out + captured.err)
    assert captured.out.startswith("a \\x1b[31mred\\x1b]8;;http://x\\x07\\u202e\\r\\x9b\nb é 漢字 👨‍👩‍👧 \\udcff\n")


def test_a_file_named_to_command_a_terminal(skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = ESCAPES.replace("/", "")
    assert_refused(skipdit("info", name), "\\x1b[31mred")
    assert_refused(skipdit("sample", "--from", name, "-o", "out.png"), "\\x1b[31mred")
    assert_refused(skipdit("sample", "--preset", "digits", "--class-labels", name, "-o", "out.png"), "\\x1b[31mred")
