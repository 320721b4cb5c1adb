"""The papers' experiments, each rerun by ``skipdit study NAME``."""

from skipdit_cli.studies.known_studies import STUDIES, load_study

__all__ = ["STUDIES", "load_study"]
