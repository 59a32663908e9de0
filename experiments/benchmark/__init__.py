"""Measures the time and the memory of operations, blocks and networks, and of PyTorch's."""
