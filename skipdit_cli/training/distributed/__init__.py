"""Training in several processes: replicated or sharded weights, and checkpoints of sharded ones."""
