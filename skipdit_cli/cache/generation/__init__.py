"""The state of one generation: its steps, its calls, and what is remembered between them."""
