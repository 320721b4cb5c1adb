"""What the processes of one command know of each other by their environment, and what they print."""

import subprocess
import sys

PRINTS = """
import os
from skipdit_cli import app
app.app = lambda: (os.write(1, b"of a library in C++"), print("ours"))
app.main()
"""


def test_what_libraries_print_does_not_break_the_output_of_several_processes(monkeypatch):
    """Gloo of torch 2.8 writes to stdout when processes meet."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ours\n", "of a library in C++")
