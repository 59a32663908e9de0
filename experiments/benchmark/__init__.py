"""Measures the time and the memory of operations, blocks and networks, here and in PyTorch."""
