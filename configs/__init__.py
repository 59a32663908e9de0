"""Experiments as ``ml_collections`` configs: plain Python, no JAX, nothing built."""
