"""What the tests share: no network, no colour, one thread; the command as a function; a tiny DiT."""

import json
import os

os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["COLUMNS"] = "80"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTEST_ADDOPTS", None)
for _name in [name for name in os.environ if name.startswith("SKIPDIT_")]:
    del os.environ[_name]

from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended. ``exception`` is None unless something escaped the app."""

    code: int
    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def json(self) -> dict:
        """The one object that ``--json`` leaves on stdout."""
        return json.loads(self.stdout)


@pytest.fixture
def skipdit():
    """``skipdit("sample", "--seed", 1, env={...})``: run the real app in this process."""

    def run(*arguments, env: dict | None = None) -> Outcome:
        from skipdit_cli.app import app

        result = CliRunner(env=env).invoke(app, [str(argument) for argument in arguments])
        escaped = None if isinstance(result.exception, SystemExit) else result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr, escaped)

    return run


@pytest.fixture(scope="session")
def tiny_dit():
    """``tiny_dit(num_layers=6, **config)``: a seeded DiT of width 16 on 8x8 images, eval mode, no weight zero."""

    def make(seed: int = 0, num_layers: int = 6, **config):
        import torch
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(seed)
        own = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 1,
            "out_channels": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
            "norm_eps": 1e-6,
        }
        model = DiTTransformer2DModel(num_layers=num_layers, **{**own, **config}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_latte():
    """``tiny_latte(num_layers=3, **config)``: a seeded Latte of width 16 on 4 frames of 8x8, eval, no weight zero;
    unconditional with ``num_embeds_ada_norm=None``."""

    def make(seed: int = 0, num_layers: int = 3, **config):
        import torch

        from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel

        torch.manual_seed(seed)
        own = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 1,
            "out_channels": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
            "video_length": 4,
        }
        model = LatteClassTransformer3DModel(num_layers=num_layers, **{**own, **config}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    return make


@dataclass(frozen=True)
class Golden:
    """A case of tests/golden: what the official code made of an official checkpoint. ``io`` has inputs and outputs."""

    name: str
    checkpoint: Path
    architecture: dict
    facts: dict
    io: dict


@pytest.fixture(scope="session")
def golden():
    """``golden("dit")``: one case, see ``Golden``."""

    def load(name: str) -> Golden:
        from safetensors.torch import load_file

        folder = Path(__file__).parent / "golden" / name
        case = json.loads((folder / "case.json").read_text())
        io = load_file(folder / "io.safetensors")
        return Golden(name, folder / "checkpoint.pt", case["architecture"], case["facts"], io)

    return load


@pytest.fixture(scope="session")
def golden_pipeline(golden, tmp_path_factory):
    """``golden_pipeline("dit")``: the folder that ``skipdit convert`` makes of a case's checkpoint, once a session."""
    made: dict[str, Path] = {}

    def convert(name: str) -> Path:
        from skipdit_cli.app import app

        if name not in made:
            case, target = golden(name), tmp_path_factory.mktemp("golden") / name
            heads = case.architecture.get("num_heads") or case.architecture["num_attention_heads"]
            given = ["--num-attention-heads", heads]
            if "sample_size" in case.architecture:  # text-to-video: its file has no position tables
                given += ["--sample-size", case.architecture["sample_size"]]
                given += ["--num-frames", case.architecture["video_length"]]
            arguments = ["convert", "-m", case.checkpoint, "-o", target, *given]
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
            assert result.exit_code == 0, result.stderr
            made[name] = target
        return made[name]

    return convert


def samples_in(path):
    """The sound of a video file: float32, the mean of two channels."""
    import subprocess

    import numpy as np
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:a:0", "-f", "f32le", "-ac", "2", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, "<f4").reshape(-1, 2).mean(1)


def relative_l2(actual, expected) -> float:
    """||a - b|| / ||b|| over two whole tensors."""
    return ((actual - expected).norm() / expected.norm()).item()


def write_pipeline(folder: Path, transformer) -> Path:
    """The folder of a pixel-space pipeline around a transformer, without a VAE."""
    from diffusers import DDIMScheduler

    from skipdit_cli.models import save_pipeline
    from skipdit_cli.models.build import pipeline_around

    save_pipeline(pipeline_around(transformer, DDIMScheduler(clip_sample=False)), folder)
    return folder


@pytest.fixture
def tiny_pipeline(tiny_dit, tmp_path):
    """``tiny_pipeline(name, **config)``: ``write_pipeline`` of a ``tiny_dit`` below the test's own folder."""
    return lambda name="tiny", **config: write_pipeline(tmp_path / name, tiny_dit(**config))


@pytest.fixture
def latte_pipeline(tiny_latte, tmp_path):
    """``latte_pipeline(name, **config)``: ``write_pipeline`` of a ``tiny_latte`` below the test's own folder."""
    return lambda name="latte", **config: write_pipeline(tmp_path / name, tiny_latte(**config))


def tiny_tokenizer(folder: Path):
    """A T5 tokenizer of a few words and all letters, made without a download."""
    from string import ascii_lowercase

    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import T5TokenizerFast

    words = [f"▁{word}" for word in ("a", "cat", "dog", "red", "runs")]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0, **dict.fromkeys(ascii_lowercase, -3.0)}
    tokenizer = Tokenizer(Unigram([*scores.items(), *((word, -1.0) for word in words)], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return T5TokenizerFast.from_pretrained(folder)


def tiny_text_transformer(seed: int = 0, num_layers: int = 4, **config):
    """A seeded text-to-video Latte of width 16 on 4 frames of 8x8 latents and texts 12 wide, no weight zero."""
    import torch
    from diffusers import LatteTransformer3DModel

    torch.manual_seed(seed)
    own = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 12,
        "attention_bias": True,
        "video_length": 4,
    }
    model = LatteTransformer3DModel(num_layers=num_layers, **{**own, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_vae(temporal: bool = False, seed: int = 0, **config):
    """A seeded decoder of 4 latent channels to pixels twice as fine."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    torch.manual_seed(seed)
    own = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    if temporal:
        return AutoencoderKLTemporalDecoder(**own, **config).eval()
    return AutoencoderKL(**own, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, **config).eval()


@pytest.fixture(scope="session")
def text_pipeline(tmp_path_factory) -> Path:
    """The folder of a whole, tiny, seeded ``LattePipeline``: 4 frames of 16x16 from a text. Not to be changed."""
    import torch
    from diffusers import DDIMScheduler, LattePipeline
    from transformers import T5Config, T5EncoderModel

    made = tmp_path_factory.mktemp("text")
    tokenizer = tiny_tokenizer(made / "words")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=12, d_kv=6, d_ff=24, num_layers=1, num_heads=2, initializer_factor=5.0
    )
    encoder = T5EncoderModel(config).eval()
    scheduler = DDIMScheduler(beta_end=0.02, beta_schedule="linear", clip_sample=False)
    LattePipeline(tokenizer, encoder, tiny_vae(), tiny_text_transformer(), scheduler).save_pretrained(made / "latte")
    return made / "latte"


@pytest.fixture(scope="session")
def digits_model() -> Path:
    """The pipeline folder of the pretrained digits model that the package carries."""
    from skipdit_cli.presets import load_preset

    return load_preset("digits").weights_path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def converted(tiny_pipeline):
    """``converted(name, **config)``: the folder of a ``tiny_pipeline`` with fresh residual branches in ``skip/``."""

    def make(name: str = "converted", **config) -> Path:
        from skipdit_cli.models import load_pipeline, save_branches
        from skipdit_cli.skip import add_skip_branches

        folder = tiny_pipeline(name, **config)
        save_branches(add_skip_branches(load_pipeline(folder).transformer), folder)
        return folder

    return make


@pytest.fixture
def fresh_accelerate():
    """Before and after it, accelerate has no state: in one process it would hold on to its first run's precision."""
    from accelerate.state import AcceleratorState, GradientState

    def forget():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    yield
    forget()
