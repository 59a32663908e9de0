"""Names of the configs in ``nonlocal_jax/configs`` for the command line."""
