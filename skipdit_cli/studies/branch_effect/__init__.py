"""The study of skip branches: what they add to a cache."""
