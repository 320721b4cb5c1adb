"""The former place of ``skipdit_cli.generate``, which model cards of earlier folders import it from."""
