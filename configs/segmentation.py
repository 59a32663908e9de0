"""The configs of ``nonlocal_jax/configs/segmentation.py``, for the command line.

python -m experiments.train --workdir=DIR --config=configs/segmentation.py:demo_nonlocal
"""

from nonlocal_jax.configs.segmentation import NAMES, get_config

__all__ = ["NAMES", "get_config"]
