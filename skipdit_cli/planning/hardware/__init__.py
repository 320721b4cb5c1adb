"""Planning for other hardware: the memory and the time of training and sampling, counted without weights."""
