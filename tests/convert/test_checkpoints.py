"""Checkpoints that fit are loaded bit for bit; others are refused with all reasons."""

import json
import random
import stat
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from nonlocal_jax import convert, create_model
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError
from tests.helpers import TINY, random_variables

VARIANTS = {
    "nonlocal": {},
    "disentangled_nonlocal": {"block": "disentangled_nonlocal"},
    "global_context": {"block": "global_context"},
    "none": {"block": "none"},
    "v1": {"stem": "v1"},
    "concatenation": {"block_mode": "concatenation"},
    "factor": {
        "block": "disentangled_nonlocal",
        "block_output": "factor",
        "block_at": ("layer1.0",),
    },
    "inside": {
        "block": "global_context",
        "block_in_head": False,
        "block_at": ("layer1.0", "layer2.1"),
    },
    "between": {
        "block_in_head": False,
        "block_at": ("layer2.0",),
        "block_position": "after_residual",
    },
    "both": {"block_at": ("layer1.0",)},
}


def state_dict(config, seed=0):
    return convert.to_torch(random_variables(config, seed), config)


def assert_kept(loaded, kept, is_fresh):
    """Every array equals the one in ``kept`` bit for bit, except those that were initialized."""
    loaded, kept = flatten_dict(loaded, sep="/"), flatten_dict(kept, sep="/")
    assert loaded.keys() == kept.keys()
    for name, array in loaded.items():
        assert np.array_equal(array, kept[name]) != is_fresh(name), name


def write_torch(path, content):
    torch_file.write(path, content)
    return path


def assert_identical(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype == np.float32
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_and_import_are_inverse(tmp_path, variant):
    config = TINY | VARIANTS[variant]
    variables = random_variables(config)
    convert.export_torch(tmp_path / "a.pth", variables, config)
    assert_identical(convert.load(tmp_path / "a.pth", config), variables)
    convert.save(tmp_path / "a.safetensors", variables, config)
    assert_identical(convert.load(tmp_path / "a.safetensors", config), variables)


def test_loaded_variables_run_in_the_model():
    loaded = convert.from_torch(state_dict(TINY), TINY)
    images = jnp.ones((1, 16, 16, 3))
    logits = jax.eval_shape(create_model(TINY).apply, loaded, images)
    assert logits.shape == (1, 16, 16, 3)


def test_exports_every_entry_that_pytorch_expects(tmp_path):
    convert.export_torch(tmp_path / "a.pth", random_variables(TINY), TINY)
    content = unpickle.read(tmp_path / "a.pth")
    exported = content["state_dict"]
    assert json.loads(content["meta"]["model_config"])["num_classes"] == 3
    norms = [name.removesuffix("running_var") for name in exported if "running_var" in name]
    assert norms
    for norm in norms:
        counter = exported[f"{norm}num_batches_tracked"]
        assert counter.dtype == np.int64
        assert counter == 0
    weights = {k: v for k, v in exported.items() if not k.endswith("num_batches_tracked")}
    assert len(exported) == len(weights) + len(norms)
    assert {k: v.shape for k, v in weights.items()} == {
        leaf.name: leaf.torch_shape for leaf in names.leaves(TINY)
    }


def test_to_torch_names_gradients():
    variables = random_variables(TINY)
    gradients = convert.to_torch({"params": variables["params"]}, TINY)
    assert not any("running" in name for name in gradients)
    whole = convert.to_torch(variables, TINY)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, whole[name])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s, "meta": {"CLASSES": ["a"]}},  # mmsegmentation 0.x
        lambda s: {
            "state_dict": s,
            "meta": {"dataset_meta": {}},
            "message_hub": {},
            "optimizer": {"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}},
            "ema_state_dict": {f"module.{k}": 0 * v for k, v in s.items()},
        },  # mmsegmentation 1.x
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {
            "state_dict": s | {f"ema_{k.replace('.', '_')}": 0 * v for k, v in s.items()}
        },  # mmcv 1.x
        lambda s: {
            "state_dict": s
            | {
                k.replace("running_var", "num_batches_tracked"): np.array(7)
                for k in s
                if "running_var" in k
            }
        },
    ],
)
def test_nested_state_dicts_and_other_entries(tmp_path, wrap):
    path = write_torch(tmp_path / "a.pth", wrap(state_dict(TINY)))
    assert_identical(convert.load(path, TINY), random_variables(TINY))


def test_safetensors_with_names_of_pytorch(tmp_path):
    arrays = {name: np.ascontiguousarray(x) for name, x in state_dict(TINY).items()}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert_identical(convert.load(tmp_path / "a.safetensors", TINY), random_variables(TINY))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_types_become_float32(tmp_path, dtype):
    stored = {name: np.ascontiguousarray(x, dtype) for name, x in state_dict(TINY).items()}
    expected = convert.from_torch({k: v.astype(np.float32) for k, v in stored.items()}, TINY)
    path = write_torch(tmp_path / "a.pth", stored)
    assert_identical(convert.load(path, TINY), expected)
    safetensors.numpy.save_file(stored, tmp_path / "a.safetensors")
    assert_identical(convert.load(tmp_path / "a.safetensors", TINY), expected)


def test_integer_weights_are_refused():
    arrays = state_dict(TINY)
    arrays["decode_head.conv_seg.bias"] = np.zeros(3, np.int32)
    with pytest.raises(InputError, match=r"decode_head\.conv_seg\.bias is int32"):
        convert.from_torch(arrays, TINY)


def test_all_problems_are_listed_at_once():
    arrays = state_dict(TINY)
    del arrays["backbone.layer1.0.bn1.bias"], arrays["decode_head.nl_block.g.conv.weight"]
    arrays["neck.weight"] = np.zeros(2, np.float32)
    arrays["decode_head.convs.1.bn.bias"] = np.zeros(9, np.float32)
    with pytest.raises(InputError) as error:
        convert.from_torch(arrays, TINY)
    message = str(error.value)
    assert "2 missing" in message
    assert "backbone.layer1.0.bn1.bias (8,)" in message
    assert "decode_head.nl_block.g.conv.weight (4, 8, 1, 1)" in message
    assert "1 not in the model:\n  neck.weight (2,)" in message
    assert "decode_head.convs.1.bn.bias is (9,), (8,) in the model" in message


@pytest.mark.parametrize(
    ("theirs", "ours", "hint"),
    [
        (
            {"block": "disentangled_nonlocal"},
            {},
            "block is 'disentangled_nonlocal' in the checkpoint, 'nonlocal' in the config",
        ),
        ({"block": "none"}, {}, "block is 'none' in the checkpoint, 'nonlocal'"),
        (
            {},
            {"stage_sizes": (1, 3)},
            "stage_sizes is (1, 2) in the checkpoint, (1, 3) in the config",
        ),
        ({"stem": "v1"}, {}, "stem is 'v1' in the checkpoint, 'v1c' in the config"),
        ({"num_classes": 5}, {}, "--reinit-head"),
        ({"num_classes": 5}, {}, "num_classes is 5 in the checkpoint, 3 in the config"),
        (
            {"block_at": ("layer2.1",)},
            {},
            "block_at is ('layer2.1',) in the checkpoint, () in the config",
        ),
        (
            {"block_at": ("layer2.1",), "block_in_head": False},
            {},
            "block_in_head is False in the checkpoint, True in the config",
        ),
        (
            {"block_at": ("layer2.1",), "block_in_head": False},
            {"block": "none"},
            "block is 'nonlocal' in the checkpoint, 'none' in the config",
        ),
        ({"head_channels": 6}, {}, "head_channels is 6 in the checkpoint, 8 in the config"),
    ],
)
def test_differences_of_the_architecture_are_named(tmp_path, theirs, ours, hint):
    path = write_torch(tmp_path / "a.pth", {"state_dict": state_dict(TINY | theirs)})
    with pytest.raises(InputError) as error:
        convert.load(path, TINY | ours)
    assert hint in str(error.value)
    assert str(path) in str(error.value)


def test_long_lists_are_shortened(tmp_path):
    with pytest.raises(InputError, match=r"and \d+ more") as error:
        convert.from_torch(state_dict(TINY), TINY | {"stage_sizes": (3, 8)})
    assert len(str(error.value).splitlines()) < 20


@pytest.mark.parametrize(("suffix", "classes"), [("pth", 5), ("safetensors", 3)])
def test_reinit_head(tmp_path, suffix, classes, caplog):
    path = tmp_path / f"a.{suffix}"
    variables = random_variables(TINY)
    write = convert.save if suffix == "safetensors" else convert.export_torch
    write(path, variables, TINY)
    config = TINY | {"num_classes": classes}
    loaded = convert.load(path, config, reinit_head=True, seed=1)
    assert_kept(loaded, variables, lambda name: "/conv_seg/" in name)
    assert f"{path}:\n  auxiliary_head/conv_seg\n  decode_head/conv_seg" in caplog.text

    @jax.jit
    def initial(key):
        params = create_model(config).init(key, jnp.zeros((1, 16, 16, 3)))["params"]
        return {head: params[head]["conv_seg"] for head in ("decode_head", "auxiliary_head")}

    for head, expected in initial(jax.random.key(1)).items():
        actual = loaded["params"][head]["conv_seg"]
        np.testing.assert_allclose(actual["kernel"], expected["kernel"], rtol=1e-5)
        np.testing.assert_array_equal(actual["bias"], expected["bias"])


def backbone_arrays(config):
    return {k: v for k, v in state_dict(config).items() if k.startswith("backbone.")}


@pytest.mark.parametrize(("stem", "prefix"), [("v1", ""), ("v1c", "backbone.")])
def test_a_classifier_fills_the_backbone(tmp_path, caplog, stem, prefix):
    config = TINY | {"stem": stem, "stage_sizes": (1, 1), "block": "none"}
    arrays = {prefix + k.removeprefix("backbone."): v for k, v in backbone_arrays(config).items()}
    arrays |= {"fc.weight": np.ones((10, 64), np.float32), "fc.bias": np.ones(10, np.float32)}
    if prefix:
        arrays = {k.replace("fc.", "head.fc."): v for k, v in arrays.items()}
    loaded = convert.load(write_torch(tmp_path / "a.pth", arrays), config)

    assert_kept(loaded, random_variables(config), lambda name: "/backbone/" not in name)
    assert "a.pth:\n  auxiliary_head\n  decode_head\n" in caplog.text


def test_a_classifier_of_another_stem_is_refused():
    arrays = {k.removeprefix("backbone."): v for k, v in backbone_arrays(TINY).items()}
    with pytest.raises(InputError, match="stem is 'v1c' in the checkpoint, 'v1' in the config"):
        convert.from_torch(arrays, TINY | {"stem": "v1"})


def test_inserted_blocks_are_read_or_initialized(caplog):
    config = TINY | VARIANTS["inside"] | {"stage_sizes": (1, 1), "block_at": ("layer2.0",)}
    old, path = random_variables(config), ("params", "backbone", "layer2_0", "block", "conv_mask")

    def kernel(variables):
        for key in path:
            variables = variables[key]
        return variables["kernel"]

    detector = backbone_arrays(config) | {"neck.fpn_convs.0.conv.weight": np.ones(1, np.float32)}
    np.testing.assert_array_equal(kernel(convert.from_torch(detector, config)), kernel(old))

    classifier = {k: v for k, v in detector.items() if "_block." not in k}
    loaded = convert.from_torch(classifier, config)
    assert not np.array_equal(kernel(loaded), kernel(old))
    assert kernel(loaded).shape == kernel(old).shape
    assert "\n  backbone/layer2_0/block\n" in caplog.text

    del detector["backbone.layer2.0.context_block.conv_mask.weight"]
    with pytest.raises(InputError, match="1 missing"):
        convert.from_torch(detector, config)


class Foreign:
    """Pickled, a global that is not imported when it is read."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a.weight": Foreign()}}, r"'a\.weight': an object of .*Foreign"),
        ({"a.weight": Foreign()}, r"'a\.weight': an object of .*Foreign"),
        ({"state_dict": {"a": [1]}}, "'a': an object of type list"),
        ({"state_dict": {3: np.zeros(2, np.float32)}}, "more than tensors"),
        (Foreign(), r"Foreign.*save model\.state_dict\(\)"),
        ({"state_dict": Foreign()}, "'state_dict': an object of .*Foreign"),
        ([1, 2], "an object of type list instead of a state dict"),
    ],
)
def test_only_tensors_in_a_state_dict(tmp_path, content, message):
    path = write_torch(tmp_path / "a.pth", content)
    with pytest.raises(InputError, match=message):
        convert.load(path, TINY)


def test_a_file_without_any_known_name_is_refused(tmp_path):
    path = write_torch(tmp_path / "a.pth", {"word_embeddings": np.zeros((4, 2), np.float32)})
    with pytest.raises(InputError, match="missing"):
        convert.load(path, TINY)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_refused_with_one_error(tmp_path, suffix):
    config = TINY | {"width": 2, "stage_sizes": (1, 1)}
    whole = tmp_path / f"whole.{suffix}"
    write = convert.save if suffix == "safetensors" else convert.export_torch
    write(whole, random_variables(config), config)
    data = whole.read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    for size in range(0, len(data), 1 + len(data) // 60):
        path.write_bytes(data[:size])
        with pytest.raises(InputError):
            convert.load(path, config)
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            outcomes.add(set(convert.load(path, config)) == {"params", "batch_stats"})
        except InputError:
            outcomes.add("refused")
    assert "refused" in outcomes
    assert False not in outcomes


def test_metadata_of_a_saved_file(tmp_path):
    path = tmp_path / "a.safetensors"
    convert.save(path, random_variables(TINY), TINY)
    assert convert.read_model_config(path) == json.loads(json.dumps(TINY))
    with safetensors.safe_open(path, "numpy") as file:
        assert "params/backbone/stem_conv1/kernel" in set(file.keys())
    config = convert.read_model_config(path)
    assert_identical(convert.load(path, config), random_variables(TINY))

    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="no model config"):
        convert.read_model_config(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("align_corners", True),
        ("block_mode", "dot_product"),
        ("block_use_scale", False),
        ("strides", (1, 2)),
        ("dilations", (1, 2)),
    ],
)
def test_another_function_of_the_same_shapes_is_refused(tmp_path, option, value):
    path = tmp_path / "a.safetensors"
    convert.save(path, random_variables(TINY), TINY)
    with pytest.raises(
        InputError, match=f"does not fit the model config\n{option} is .*\nuse the model config"
    ):
        convert.load(path, TINY | {option: value})


@pytest.mark.parametrize(("theirs", "ours"), [(True, "after"), ("after", True)])
def test_two_names_of_the_same_option_do_not_differ(tmp_path, theirs, ours):
    path = tmp_path / "a.safetensors"
    convert.save(path, random_variables(TINY), TINY | {"block_sub_sample": theirs})
    assert_identical(convert.load(path, TINY | {"block_sub_sample": ours}), random_variables(TINY))
    with pytest.raises(InputError, match=r"block_sub_sample is 'after' .*, 'before' in the config"):
        convert.load(path, TINY | {"block_sub_sample": "before"})


@pytest.mark.parametrize(
    "options",
    [
        {"block_sub_sample": "before"},
        {"block": "disentangled_nonlocal", "block_output": "factor", "block_sub_sample": "after"},
    ],
)
def test_blocks_that_the_source_lacks_are_neither_exported_nor_read(tmp_path, options):
    config = TINY | options
    with pytest.raises(
        InputError, match=r"has block_sub_sample=.*save a .safetensors file instead"
    ):
        convert.export_torch(tmp_path / "a.pth", random_variables(config), config)
    arrays = state_dict(config | {"block_sub_sample": False})
    with pytest.raises(InputError, match="in the config, which no block with these names has"):
        convert.from_torch(arrays, config)


def test_options_without_effect_on_inference_may_differ(tmp_path):
    path = tmp_path / "a.safetensors"
    convert.save(path, random_variables(TINY), TINY)
    other = {
        "block": "nonlocal",
        "block_implementation": "dense",
        "dropout": 0.5,
        "dtype": "bfloat16",
        "norm": "frozen_batch_norm",
    }
    assert_identical(convert.load(path, TINY | other), random_variables(TINY))


@pytest.mark.parametrize(
    ("theirs", "ours"), [("bfloat16", "float32"), ("default", "bfloat16"), ("default", None)]
)
def test_the_type_of_the_computation_may_differ(tmp_path, theirs, ours):
    variables = random_variables(TINY)
    convert.save(tmp_path / "a.safetensors", variables, TINY | {"dtype": theirs})
    config = TINY | ({} if ours is None else {"dtype": ours})
    assert_identical(convert.load(tmp_path / "a.safetensors", config), variables)


def test_saved_for_another_block(tmp_path):
    path = tmp_path / "a.safetensors"
    config = TINY | {"block": "disentangled_nonlocal"}
    convert.save(path, random_variables(config), config)
    with pytest.raises(InputError) as error:
        convert.load(path, TINY)
    message = str(error.value)
    assert "block is 'disentangled_nonlocal' in the checkpoint, 'nonlocal' in the config" in message
    assert "params/decode_head/block/conv_mask/kernel (8, 1)" in message


@pytest.mark.parametrize("name", ["a.pth", "a"])
def test_another_suffix_is_not_saved(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in \.safetensors, or .*export_torch for a \.pth"):
        convert.save(tmp_path / name, random_variables(TINY), TINY)
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_is_not_exported(tmp_path):
    with pytest.raises(InputError, match=r"use a path that ends in \.pth, or .*convert\.save"):
        convert.export_torch(tmp_path / "a.safetensors", random_variables(TINY), TINY)
    assert not list(tmp_path.iterdir())


WRITERS = [(convert.save, "a.safetensors"), (convert.export_torch, "a.pth")]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_variables_of_another_model_are_not_written(tmp_path, write, name):
    with pytest.raises(InputError, match="does not fit"):
        write(tmp_path / name, random_variables(TINY), TINY | {"num_classes": 4})
    with pytest.raises(InputError, match="missing"):
        write(tmp_path / name, {"params": random_variables(TINY)["params"]}, TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_failed_write_leaves_no_partial_file(tmp_path, write, name, monkeypatch):
    variables = random_variables(TINY)
    with pytest.raises(InputError, match=r"cannot write .*No such file or directory"):
        write(tmp_path / "none" / name, variables, TINY)
    (tmp_path / name).write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_file, "write", fail)
    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / name, variables, TINY)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_written_files_have_the_usual_permissions(tmp_path, write, name):
    (tmp_path / "plain").touch()
    write(tmp_path / name, random_variables(TINY), TINY)
    mode = stat.S_IMODE((tmp_path / name).stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_safetensors_of_an_unknown_type(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(InputError, match="safetensors"):
        convert.load(path, TINY)


@pytest.mark.parametrize("name", ["none", "none.pth", "none.safetensors"])
def test_a_missing_checkpoint_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"no checkpoint at .*{name}; use a work directory"):
        convert.load(tmp_path / name, TINY)
