"""``python -m skipdit_cli``, which is what ``accelerate launch -m`` needs."""

from skipdit_cli.app import main

if __name__ == "__main__":  # a process that "skipdit study --jobs" starts imports this file under another name
    main()
