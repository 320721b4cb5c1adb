"""The layouts of official checkpoints: DiT, SiT, Latte and the released Skip-DiT files."""
