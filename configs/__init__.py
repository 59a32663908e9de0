"""Experiments as ``ml_collections`` configs, in plain Python without JAX."""
