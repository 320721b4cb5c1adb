"""Skip branches: what they are, and how they are attached."""

from skipdit_cli.skip.attach import SKIP, add_skip_branches, remove_skip_branches, skip_folder
from skipdit_cli.skip.branches import MERGES, SkipBranches

__all__ = ["MERGES", "SKIP", "SkipBranches", "add_skip_branches", "remove_skip_branches", "skip_folder"]
