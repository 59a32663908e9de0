import os
import pathlib

import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.train._tensorboard import Scalars


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_neither_blocks_the_run_nor_hides_its_message(tmp_path):
    pytest.importorskip("tensorboardX")
    scalars = Scalars(tmp_path, 0)
    scalars.add(1, {"train/loss": 1.0})
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), scalars._writer._writer.fileno())
    for step in range(2, 20):
        with pytest.raises(InputError, match=r"cannot write \S+: No space left on device; "):
            scalars.add(step, {"train/loss": 1.0})
    scalars.close()
