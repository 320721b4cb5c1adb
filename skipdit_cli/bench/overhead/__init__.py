"""The time that a cache spends in Python, beside what the blocks compute."""
