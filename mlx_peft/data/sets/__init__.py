"""The data sets, a module each: where their files lie, how they are read, and what must be true of them."""
