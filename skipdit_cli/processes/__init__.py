"""The processes that a launcher starts for one command, and how they work together."""

from skipdit_cli.processes.joining import end, join, leave, lost_peer
from skipdit_cli.processes.launched import check_alone, claim_stdout, count, local_rank, rank
from skipdit_cli.processes.team import Team

__all__ = ["Team", "check_alone", "claim_stdout", "count", "end", "join", "leave", "local_rank", "lost_peer", "rank"]
