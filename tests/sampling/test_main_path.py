"""The main path of ``skipdit sample``: the files to read to follow a tensor and its settings to the picture."""

import functools
import inspect
import sys
import traceback
from collections import defaultdict
from pathlib import Path

import diffusers
import torch
from diffusers.models.attention import BasicTransformerBlock

import skipdit_cli
from skipdit_cli import load_pipeline, media
from skipdit_cli.models import save_pipeline

PACKAGE = Path(skipdit_cli.__file__).parent
MAIN_PATH = [
    "commands/sample.py",
    "sampling/sample_settings.py",
    "models/open.py",
    "sampling/run_settings.py",
    "sampling/generate.py",
    "sampling/by_class.py",
    "sampling/schedulers/make_scheduler.py",
    "cache/enable.py",
    "cache/skip_cache.py",
    "cache/policy.py",
    "cache/generation/slot.py",
    "trunk/forward_state.py",
    "trunk/block.py",
    "skip/merge.py",
    "skip/branches.py",
    "sampling/latents.py",
    "sampling/pixels.py",
    "commands/sample_files.py",
]
"""In reading order. Not on it, though their functions run too: the ground floor (errors, console, files, media); what
turns flags into settings (the rest of ``commands/``); what refuses a model or a setting, or puts branches and caches
on a model (``models/``, ``families/``, ``sampling/refusals.py``, ``skip/attach.py``, the rest of ``trunk/``); and what
tells one generation from the next (the rest of ``cache/``)."""
GROUND_FLOOR = ("app.py", "console.py", "errors.py", "files/", "finite.py", "formats.py", "media/", "quiet.py")
FLAGS = "commands/flags.py"


def file_of(path: str) -> str:
    return Path(path).relative_to(PACKAGE).as_posix() if path.startswith(f"{PACKAGE}/") else ""


def latent_model(tiny_pipeline, skipdit, folder: Path) -> Path:
    """A converted tiny DiT with a VAE."""
    pipe = load_pipeline(tiny_pipeline(in_channels=4, out_channels=8))
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    pipe.register_modules(vae=diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).eval())
    save_pipeline(pipe, folder / "model")
    assert skipdit("convert", folder / "model", "-o", folder / "converted").code == 0
    return folder / "converted"


def test_the_main_path_reads_in_under_2000_lines_of_18_files(tiny_pipeline, skipdit, tmp_path, monkeypatch):
    """Lines are those of the functions that run, from the command's own on, with their docstrings; and all lines of
    the files that declare settings."""
    model, codes, files_on_stack = latent_model(tiny_pipeline, skipdit, tmp_path), set(), set()

    def profile(frame, event, argument) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or class that is imported
        if event == "call" and is_function and (file := file_of(code.co_filename)):
            if codes or (file == "commands/sample.py" and code.co_name == "sample"):
                codes.add(code)

    def note_stack(owner, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def noted(*arguments, **named):
            files_on_stack.update(file_of(frame.filename) for frame in traceback.extract_stack())
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)

    note_stack(BasicTransformerBlock, "forward")
    note_stack(diffusers.AutoencoderKL, "decode")
    note_stack(media, "save_png")
    sys.setprofile(profile)
    try:
        ran = skipdit("sample", "-m", model, "--steps", 4, "--cache-layers", 1, "-o", tmp_path / "a.png")
    finally:
        sys.setprofile(None)
    assert ran.code == 0, ran.stderr

    lines = defaultdict(set)
    for code in codes:
        source, start = inspect.getsourcelines(code)
        lines[file_of(code.co_filename)].update(range(start, start + len(source)))
    for file in MAIN_PATH:
        assert lines[file], f"{file} is on the main path, and nothing of it runs"
        whole = len((PACKAGE / file).read_text().splitlines())
        if file.endswith("settings.py"):
            lines[file] = set(range(whole))
        print(f"{len(lines[file]):5d} of {whole:4d} lines are read in {file}")
    total, everything = sum(len(lines[file]) for file in MAIN_PATH), sum(map(len, lines.values()))
    print(f"{total:5d} in {len(MAIN_PATH)} files; all that runs: {everything} in {len(lines)} files")
    assert total < 2000 and len(MAIN_PATH) <= 18
    above = {file for file in files_on_stack if file and not file.startswith((*GROUND_FLOOR, FLAGS))}
    assert above <= {*MAIN_PATH}, "a tensor passes a frame of a file that is not on the main path"


def test_the_map_shows_the_main_path():
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## The path of a tensor") : text.index("Off that path")]
    assert not [file for file in MAIN_PATH if f"`{file}`" not in section]
