"""The caches of other libraries, run beside ours in the same bench (``skipdit bench --peers``)."""
