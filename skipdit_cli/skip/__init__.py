"""Skip branches: the module, how it is attached to a transformer, and the merge of its sources in one forward."""

from skipdit_cli.skip.attach import SKIP, add_skip_branches, remove_skip_branches, skip_folder
from skipdit_cli.skip.branches import MERGES, SkipBranches

__all__ = ["MERGES", "SKIP", "SkipBranches", "add_skip_branches", "remove_skip_branches", "skip_folder"]
