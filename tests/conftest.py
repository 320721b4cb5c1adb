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


def relative_l2(actual, expected) -> float:
    """||a - b|| / ||b|| over two whole tensors."""
    return ((actual - expected).norm() / expected.norm()).item()


def write_pipeline(folder: Path, transformer) -> Path:
    """The folder of a pixel-space pipeline around a transformer, without a VAE."""
    from diffusers import DDIMScheduler

    transformer.save_pretrained(folder / "transformer")
    DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def tiny_pipeline(tiny_dit, tmp_path):
    """``tiny_pipeline(name, **config)``: ``write_pipeline`` of a ``tiny_dit`` below the test's own folder."""
    return lambda name="tiny", **config: write_pipeline(tmp_path / name, tiny_dit(**config))


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
        from skipdit_cli.checkpoints import load_pipeline, save_branches
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
