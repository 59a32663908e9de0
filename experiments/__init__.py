"""Short programs with flags; everything they do is a call of the library."""
