"""A local page on which one model is sampled with and without its cache (``skipdit play``)."""
