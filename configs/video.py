"""The configs of ``nonlocal_jax/configs/video.py``, for the command line.

python -m experiments.train --workdir=DIR --config=configs/video.py:nl_i3d_r50_5block_32f
"""

from nonlocal_jax.configs.video import ALIASES, NAMES, get_config

__all__ = ["ALIASES", "NAMES", "get_config"]
