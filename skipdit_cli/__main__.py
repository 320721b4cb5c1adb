"""``python -m skipdit_cli``, which is what ``accelerate launch -m`` needs."""

from skipdit_cli.app import main

main()
