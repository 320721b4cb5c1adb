"""What several test files share: tiny models, tiny pipelines, runs of them, and comparisons."""
