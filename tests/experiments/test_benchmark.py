import json
import os
import re

import pytest

from experiments.benchmark import _cases, _ours, _report, _runner
from experiments.benchmark._cases import Case

# Without the variants of PyTorch, which may be installed: compiling them takes minutes.
_OURS = ("--variants=ours,ours_dense", "--repeats=2", "--nomemory")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """The command sets this variable in its own process."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def _benchmark(command, kind, directory, *arguments):
    status, stdout, stderr = command("benchmark", kind, f"--output={directory}", *arguments)
    assert status == 0, stderr
    results = json.loads((directory / f"{kind}.json").read_text())
    assert (directory / f"{kind}.md").read_text() == stdout
    assert (directory / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    return results, stdout, stderr


def test_operations_and_blocks_are_timed_in_all_sizes_and_modes(command, tmp_path):
    report, table, stderr = _benchmark(
        command,
        "ops",
        tmp_path,
        *_OURS,
        "--operations=dot_product,global_context_block",
        "--positions=12,16",
        "--channels=4",
        "--batch_size=2",
    )
    results = report["results"]
    # The operation has two variants, the block has one. Each has two sizes and two modes.
    assert len(results) == (2 + 1) * 2 * 2
    assert {len(r["wall_seconds"]) for r in results} == {2}
    assert all(seconds > 0 for r in results for seconds in r["wall_seconds"])
    assert {(r["positions"], tuple(r["size"])) for r in results} == {(12, (3, 4)), (16, (4, 4))}
    assert "float32, batch 2, C = 4" in table.splitlines()[0]
    assert f"of {os.cpu_count()} cores" in report["device"]
    assert "--positions=12,16" in report["command"]
    assert "[8/8] global_context_block N=16 forward+backward: ours " in stderr


@pytest.fixture
def _small_networks(monkeypatch):
    """Networks with two stages."""
    network_config = _ours.network_config

    def small(case):
        config = network_config(case)
        config.model.update(stage_sizes=(1, 1), strides=(1, 1))
        if case.is_video:
            config.model.update(inflate_at=("layer1.0",), block_at=("layer2.0",))
        else:
            config.model.dilations = (1, 1)
        return config

    monkeypatch.setattr(_ours, "network_config", small)


@pytest.mark.usefixtures("_small_networks")
def test_networks_are_timed_in_training_and_inference(command, tmp_path):
    report, table, _ = _benchmark(
        command,
        "models",
        tmp_path,
        "--variants=ours",
        "--repeats=1",
        "--nomemory",
        "--networks=r50_gc,r50_nl_i3d",
        "--sizes=17x24,16x32x32",
        "--width=8",
        "--batch_size=1",
    )
    assert [r["mode"] for r in report["results"]] == 2 * ["inference", "train"]
    assert all(r["wall_seconds"][0] > 0 for r in report["results"])
    assert [r["positions"] for r in report["results"][1:3]] == [3 * 3, 2 * 4 * 4]
    assert "| r50_gc | 17x24 | train | ours |" in table
    assert "| r50_nl_i3d | 16x32x32 | train | ours |" in table


def test_memory_is_measured_in_a_fresh_process(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    case = Case("softmax_attention", (32, 64), 1, 16, "float32", backward=True)
    (result,) = _runner.run(case, ["ours_dense"], repeats=1, memory=True)
    # At least one 2048 x 2048 matrix of float32 (16 MiB) and only a few of them.
    assert 16 <= result["peak_mib"] < 200


def test_a_variant_that_does_not_fit_or_fails_is_left_out(monkeypatch):
    case = Case("dot_product", (4, 4), 1, 4, "float32", backward=False)
    build = _runner.build

    def failing(case, variant):
        if variant == "ours_reassociated":
            raise RuntimeError("no compiler\nand more")
        return build(case, variant)

    monkeypatch.setattr(_runner, "build", failing)
    monkeypatch.setattr(_runner, "device_memory", lambda: 1000)
    variants = ["ours", "ours_dense", "ours_reassociated"]
    ours, dense, reassociated = _runner.run(case, variants, repeats=1, memory=False)
    assert len(ours["wall_seconds"]) == 1
    assert dense["note"] == "not run: its N x N matrices do not fit into memory"
    assert reassociated["note"] == "not run: RuntimeError: no compiler"
    (result,) = _runner.run(case, ["ours_reassociated"], repeats=1, memory=False)
    assert result == reassociated


def test_only_variants_with_the_attention_matrix_can_exceed_the_memory():
    for name in ("context_pool", "global_context_block", "r101_gc"):
        assert not Case(name, (999, 999), 1, 4, "float32", True).exceeds("torch_eager", 1)
    assert not Case("disentangled", (999, 999), 1, 4, "float32", True).exceeds("torch_sdpa", 1)
    assert Case("r50_dnl", (999, 999), 1, 4, "float32", True).exceeds("torch_eager", 1)
    # Three float32 matrices with 256 queries and 64 keys, in half of the memory.
    video = Case("r50_nl_i3d", (32, 64, 64), 1, 4, "float32", True)
    assert not video.exceeds("torch_eager", 2 * 3 * 4 * 256 * 64)
    assert video.exceeds("torch_eager", 2 * 3 * 4 * 256 * 64 - 1)


def test_positions_of_networks_have_output_stride_eight():
    sizes = {(512, 512): 4096, (512, 1024): 8192, (769, 769): 9409}
    for size, positions in sizes.items():
        assert Case("r50_gc", size, 2, 64, "float32", True).positions == positions
    assert [_cases.feature_map(n) for n in (9409, 8192, 13)] == [(97, 97), (64, 128), (1, 13)]


def test_the_table_has_the_median_ratio_over_the_turns():
    case = Case("dot_product", (2, 2), 2, 4, "float32", backward=False).describe()
    results = [
        {"variant": "ours", "wall_seconds": [1.0, 2.0, 4.0], "peak_mib": 7.2},
        {"variant": "torch_eager", "wall_seconds": [3.0, 4.0, 20.0]},
        {"variant": "torch_compile", "note": "not run: no compiler"},
    ]
    table = _report.table(
        {
            "kind": "ops",
            "device": "a device",
            "settings": "float32",
            "versions": {"jax": "1.2"},
            "baseline": "ours",
            "clock": "wall_seconds",
            "results": [{**case, **result} for result in results],
        }
    )
    head, _, _, _, ours, eager, compiled = table.splitlines()
    assert head == "a device; float32; jax 1.2"
    assert ours == ("| dot_product | 4 | forward | ours | 2000 | 1000 to 4000 | 1.00 | 7 |")
    # The ratios are 3, 2 and 5. The ratio of the medians would be 2.
    assert eager == "|  |  |  | **torch_eager** | 4000 | 3000 to 20000 | 3.00 |  |"
    assert compiled == "|  |  |  | torch_compile | not run: no compiler |  |  |  |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=x"], "cannot measure ''; use ops or models"),
        (["ops", "x", "--output=x"], "cannot measure 'ops x'; use ops or models"),
        (["ops"], "missing --output"),
        (["ops", "--output=x", "--operations=softmax"], "unknown --operations=softmax; use one"),
        (["ops", "--output=x", "--positions=0"], "--positions=0 is not a positive integer; use"),
        (["models", "--output=x", "--networks=r18_gc"], "unknown --networks=r18_gc; use one or"),
        (["models", "--output=x", "--sizes=512"], "--sizes=512 is not HEIGHTxWIDTH or FRAMESx"),
        (
            ["models", "--output=x", "--networks=r50_nl_i3d", "--sizes=512x512"],
            "no operation or network matches",
        ),
        (["ops", "--output=x", "--variants=fast"], "unknown --variants=fast; use one or more of"),
        (
            ["ops", "--output=x", "--variants=ours_dense", "--operations=context_pool"],
            "unknown --variants=ours_dense; use one or more of ours,torch_eager",
        ),
        (["ops", "--output=x", "--threads=1000"], "--threads=1000 exceeds the"),
    ],
)
def test_bad_flags_are_refused(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, stderr = command("benchmark", *arguments)
    assert status == 2
    assert stderr.splitlines()[-1].startswith("error: ")
    assert message in stderr
    assert not (tmp_path / "x").exists()


def test_the_preparation_of_examples(command):
    status, stdout, stderr = command("benchmark.data", "--images=1", "--draws=1")
    assert status == 0, stderr
    times = dict(re.findall(r"\| ([a-z, ]+) \| ([\d.]+) \|", stdout))
    assert len(times) == 8
    decode, whole, cached = (
        float(times[name])
        for name in (
            "decode image and label map",
            "all, from files, crop only",
            "all, from the cache, crop only",
        )
    )
    assert decode < whole
    assert cached < whole / 2
