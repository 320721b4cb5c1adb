"""The released weights: which models they are, what sampling them needs, and what is measured of them."""
