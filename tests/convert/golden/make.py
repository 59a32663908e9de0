"""Writes zip.pth and legacy.pth with the real PyTorch: python tests/convert/golden/make.py.

The layout of a file published by OpenMMLab 0.x, with what tensors come in: shared and strided
storages, every usual type, parameters; and a meta with objects of classes that are not installed
where the file is read.
"""

import collections
import datetime
import pathlib
import sys
import types

import numpy as np
import torch


def foreign_object():
    """An instance of a class of a module that exists only while this script runs."""
    module = types.ModuleType("mmcv_utils_config")
    cls = type("ConfigDict", (dict,), {"__module__": module.__name__})
    module.ConfigDict = cls
    sys.modules[module.__name__] = module
    instance = cls(type="EncoderDecoder")
    instance.filename = "config.py"
    return instance


def content():
    base = torch.arange(24, dtype=torch.float32)
    state_dict = collections.OrderedDict(
        {
            "float32": base.reshape(2, 3, 4),
            "transposed": base.reshape(4, 6).t(),
            "slice": base[5:20:3],
            "tied": base.reshape(2, 3, 4),
            "expanded": base[7:8].expand(3),
            "parameter": torch.nn.Parameter(base[:6].clone()),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7),
            **{
                str(dtype).removeprefix("torch."): torch.tensor([0, 1, 3]).to(dtype)
                for dtype in (
                    torch.float64,
                    torch.float16,
                    torch.bfloat16,
                    torch.int64,
                    torch.int32,
                    torch.int16,
                    torch.int8,
                    torch.uint8,
                    torch.bool,
                )
            },
        }
    )
    state_dict._metadata = collections.OrderedDict({"": {"version": 1}})
    meta = {
        "mmcv_version": "1.0.5",
        "CLASSES": ("road", "sidewalk"),
        "PALETTE": [[128, 64, 128], [244, 35, 232]],
        "time": datetime.datetime(2020, 6, 5),
        "config": foreign_object(),
        "counts": collections.defaultdict(int, a=1),
        "best": np.float64(0.5),
        "path": pathlib.PurePosixPath("work_dirs"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "ids": {1, 2},
    }
    return {"meta": meta, "state_dict": state_dict}


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    torch.save(content(), here / "zip.pth")
    torch.save(content(), here / "legacy.pth", _use_new_zipfile_serialization=False)
