"""Fixtures of all tests, and their environment: no network, no colour, one thread, no ``SKIPDIT_`` variable."""

import json
import os
import tempfile

os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["COLUMNS"] = "80"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="skipdit-tests-")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.environ["XDG_CACHE_HOME"] + "/hypothesis"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTEST_ADDOPTS", None)
for _name in [name for name in os.environ if name.startswith("SKIPDIT_")]:
    del os.environ[_name]

from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.pipeline_parts import tiny_tokenizer, tiny_vae
from tests.support.tiny_pipelines import write_pipeline
from tests.support.tiny_transformers import perturbed, tiny_text_transformer


def pytest_addoption(parser):
    """Add ``--chaos``, ``--fuzz`` and ``--soak``, for the long forms of the tests of killed runs, of strangers' files
    and of many generations in one process."""
    parser.addoption(
        "--chaos", type=int, default=0, help="Kills of each kind of run, and every write of each on a full disk."
    )
    parser.addoption("--fuzz", type=int, metavar="N", help="Files to draw in tests/strangers, other ones each time.")
    parser.addoption("--soak", type=int, default=0, help="Generations in one process, each compared with a new one.")


@pytest.fixture
def chaos(request) -> int:
    """The number of ``--chaos``; 0 in the short form."""
    return request.config.getoption("--chaos")


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended; ``exception`` is None unless the app let one escape."""

    code: int
    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def json(self) -> dict:
        """The one object that ``--json`` prints to stdout."""
        return json.loads(self.stdout)


@pytest.fixture
def skipdit():
    """``skipdit("sample", "--seed", 1, env={...})`` runs the real app in this process and returns an ``Outcome``."""

    def run(*arguments, env: dict | None = None) -> Outcome:
        from skipdit_cli.app import app

        result = CliRunner(env=env).invoke(app, [str(argument) for argument in arguments])
        escaped = None if isinstance(result.exception, SystemExit) else result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr, escaped)

    return run


@pytest.fixture(scope="session")
def tiny_dit():
    """``tiny_dit(num_layers=6, **config)`` is a seeded 8x8 DiT, 16 wide, in eval mode, no weight at zero."""

    def make(seed: int = 0, num_layers: int = 6, **config):
        import torch
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(seed)
        defaults = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 1,
            "out_channels": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
            "norm_eps": 1e-6,
        }
        return perturbed(DiTTransformer2DModel(num_layers=num_layers, **{**defaults, **config}).eval())

    return make


@pytest.fixture(scope="session")
def tiny_latte():
    """``tiny_latte(num_layers=3, **config)`` is a seeded 4x8x8 Latte, 16 wide, in eval mode, no weight at zero.

    It is class-conditional, or unconditional with ``num_embeds_ada_norm=None``.
    """

    def make(seed: int = 0, num_layers: int = 3, **config):
        import torch

        from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel

        torch.manual_seed(seed)
        defaults = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 1,
            "out_channels": 2,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
            "video_length": 4,
        }
        return perturbed(LatteClassTransformer3DModel(num_layers=num_layers, **{**defaults, **config}).eval())

    return make


@dataclass(frozen=True)
class Golden:
    """A case of tests/golden: an official checkpoint, and in ``io`` inputs and outputs of the official code."""

    name: str
    checkpoint: Path
    architecture: dict
    facts: dict
    io: dict


@pytest.fixture(scope="session")
def golden():
    """``golden("dit")`` is one ``Golden`` case."""

    def load(name: str) -> Golden:
        from safetensors.torch import load_file

        folder = Path(__file__).parent / "golden" / name
        case = json.loads((folder / "case.json").read_text())
        io = load_file(folder / "io.safetensors")
        return Golden(name, folder / "checkpoint.pt", case["architecture"], case["facts"], io)

    return load


@pytest.fixture(scope="session")
def golden_pipeline(golden, tmp_path_factory):
    """``golden_pipeline("dit")`` is the folder that ``skipdit convert`` writes from the case's checkpoint."""
    folders: dict[str, Path] = {}

    def convert(name: str) -> Path:
        from skipdit_cli.app import app

        if name not in folders:
            case, target = golden(name), tmp_path_factory.mktemp("golden") / name
            heads = case.architecture.get("num_heads") or case.architecture["num_attention_heads"]
            flags = ["--num-attention-heads", heads]
            if "sample_size" in case.architecture:  # a text-to-video checkpoint has no position tables
                flags += ["--sample-size", case.architecture["sample_size"]]
                flags += ["--num-frames", case.architecture["video_length"]]
            arguments = ["convert", "-m", case.checkpoint, "-o", target, *flags]
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
            assert result.exit_code == 0, result.stderr
            folders[name] = target
        return folders[name]

    return convert


@pytest.fixture
def tiny_pipeline(tiny_dit, tmp_path):
    """``tiny_pipeline(name, **config)`` is the pipeline folder of a ``tiny_dit``, in the test's ``tmp_path``."""
    return lambda name="tiny", **config: write_pipeline(tmp_path / name, tiny_dit(**config))


@pytest.fixture
def latte_pipeline(tiny_latte, tmp_path):
    """``latte_pipeline(name, **config)`` is the pipeline folder of a ``tiny_latte``, in the test's ``tmp_path``."""
    return lambda name="latte", **config: write_pipeline(tmp_path / name, tiny_latte(**config))


@pytest.fixture(scope="session")
def text_pipeline(tmp_path_factory) -> Path:
    """The folder of a tiny, seeded text-to-video ``LattePipeline`` of 4 frames of 16x16. Tests must not change it."""
    import torch
    from diffusers import DDIMScheduler, LattePipeline
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("text")
    tokenizer = tiny_tokenizer(folder / "words")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=12, d_kv=6, d_ff=24, num_layers=1, num_heads=2, initializer_factor=5.0
    )
    encoder = T5EncoderModel(config).eval()
    scheduler = DDIMScheduler(beta_end=0.02, beta_schedule="linear", clip_sample=False)
    LattePipeline(tokenizer, encoder, tiny_vae(), tiny_text_transformer(), scheduler).save_pretrained(folder / "latte")
    return folder / "latte"


@pytest.fixture(scope="session")
def digits_model() -> Path:
    """The pipeline folder of the pretrained digits model that the package contains."""
    from skipdit_cli.presets import load_preset

    return load_preset("digits").weights_path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def converted(tiny_pipeline):
    """``converted(name, **config)`` is the folder of a ``tiny_pipeline`` with new residual branches in ``skip/``."""

    def make(name: str = "converted", **config) -> Path:
        from skipdit_cli.models import load_pipeline, save_branches
        from skipdit_cli.skip import add_skip_branches

        folder = tiny_pipeline(name, **config)
        save_branches(add_skip_branches(load_pipeline(folder).transformer), folder)
        return folder

    return make


@pytest.fixture
def fresh_accelerate():
    """Reset the state of accelerate before and after a test; one process would keep the precision of its first run."""
    from accelerate.state import AcceleratorState, GradientState

    def forget():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    forget()
    yield
    forget()
