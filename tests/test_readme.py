"""What the README tells people to type works."""

import re
from pathlib import Path

import diffusers
import pytest
from typer.main import get_command

from skipdit_cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for _, text in BLOCKS
        for part in text.replace("&&", "\n").splitlines()
        for line in [part.strip()]
        if line.startswith("skipdit ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_flag_exists(line):
    command = get_command(app)
    words = line.split()[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    flags = {option for parameter in command.params for option in parameter.opts}
    assert [word for word in words if word.startswith("-") and word not in flags] == []


def test_ci_runs_what_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    for command in ('pip install -e ".[test]"', "python -m pytest -n 2"):
        assert command in README and command in script


def test_the_python_example_runs(tiny_dit, tmp_path, capsys):
    from skipdit_cli.models import save_pipeline

    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    transformer = tiny_dit(num_layers=28, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    save_pipeline(pipe, tmp_path / "model")
    example = next(text for language, text in BLOCKS if language == "python")
    said = re.search(r"# (\d+ of .* run)", example).group(1)
    exec(example.replace('"dit-xl"', repr(str(tmp_path / "model"))), {})
    assert said in capsys.readouterr().out
