"""Model cards, and publishing a folder with its card on the hub."""
