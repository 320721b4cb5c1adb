"""The sources of training data: folders, Hugging Face `datasets`, and WebDataset shards."""
