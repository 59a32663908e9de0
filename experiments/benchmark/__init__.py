"""Time and memory of operations, blocks and networks, beside PyTorch's."""
