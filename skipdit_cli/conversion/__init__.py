"""From any checkpoint to a pipeline folder with skip branches, and the proof that nothing else changed."""
