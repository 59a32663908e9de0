"""``experiments.table`` on files in the form of ``evaluate`` and ``train``.

Tests of those two commands pass it the files that they wrote.
"""

import json

import pytest

import nonlocal_jax as nlj
from nonlocal_jax.configs import segmentation, video
from nonlocal_jax.evaluation.videos import protocol as video_protocol

ROW = "nonlocal_r50-d8_769x769_40k_cityscapes"  # published: 78.33, and 79.92 with ms+flip


def write_run(directory, config, metrics):
    """A finished work directory without the files of a checkpoint. metrics.json has its values."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config.to_json())
    (directory / "checkpoints" / str(config.steps) / "variables").mkdir(parents=True)
    record = {"step": config.steps, "val/miou": 0.1}
    (directory / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    values = {
        "experiment": config.name,
        "dataset": config.data.name,
        "split": "val",
        "checkpoint": str(directory),
        **metrics,
    }
    (directory / "metrics.json").write_text(json.dumps(values))


def cells(out):
    """The cells of the rows."""
    rows = [line for line in out.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_seeds_share_a_row_and_protocols_do_not(command, tmp_path):
    for seed, miou in enumerate((0.78, 0.79)):
        config = segmentation.get_config(ROW)
        config.seed = seed
        protocol = nlj.evaluation.Predictor(config).protocol
        write_run(tmp_path / f"seed{seed}" / ROW, config, {"miou": miou, "protocol": protocol})
    protocol = nlj.evaluation.Predictor(config, multi_scale=True).protocol
    write_run(tmp_path / "flip", config, {"miou": 0.8, "protocol": protocol})
    other = {**protocol, "ratios": [1.0, 2.0]}
    write_run(tmp_path / ".compiled" / "ignored", config, {"miou": 0.9, "protocol": protocol})
    config.steps = 100
    write_run(tmp_path / "other", config, {"miou": 0.8, "protocol": other})
    status, out, err = command("table", tmp_path)
    assert (status, err) == (0, "")
    changed = f"{ROW} (steps=100)"
    assert cells(out) == [
        [ROW, "slide, 1 scale", "mIoU", "78.50 ± 0.71", "78.33", "+0.17", "2 (0, 1)", "40000"],
        [ROW, "slide, 6 scales, flip", "mIoU", "80.00", "79.92", "+0.08", "1 (1)", "40000"],
        [changed, "slide, 2 scales, flip", "mIoU", "80.00", "-", "-", "1 (1)", "100"],
    ]


@pytest.mark.parametrize(
    ("name", "metric", "title", "published"),
    [
        ("nl_i3d_r50_5block_32f", "top1", "top-1", "74.90"),
        ("charades_nl_i3d_r101_128f", "map", "mAP", "37.50"),
    ],
)
def test_videos(command, tmp_path, name, metric, title, published):
    config = video.get_config(name)
    protocol = json.loads(json.dumps(video_protocol(config)))
    write_run(tmp_path / name, config, {metric: 0.3, "protocol": protocol})
    _, out, _ = command("table", tmp_path)
    difference = f"{30 - float(published):+.2f}"
    assert cells(out) == [
        [name, protocol["name"], title, "30.00", published, difference, "1 (0)", str(config.steps)]
    ]


def test_runs_that_are_unfinished_or_cannot_be_read_are_listed(command, tmp_path):
    config = segmentation.get_config(ROW)
    protocol = nlj.evaluation.Predictor(config).protocol
    for name in ("unfinished", "damaged", "foreign", "nan", "old", "text", "undefined"):
        write_run(tmp_path / name, config, {"miou": 0.5, "protocol": protocol})
    (tmp_path / "unfinished" / "checkpoints" / "40000").rename(
        tmp_path / "unfinished" / "checkpoints" / "4000"
    )
    (tmp_path / "unfinished" / "metrics.json").unlink()
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    (tmp_path / "foreign" / "metrics.json").write_text('{"miou": 0.5}')
    (tmp_path / "undefined" / "metrics.json").write_text('{"miou": null}')
    (tmp_path / "nan" / "metrics.json").write_text('{"miou": NaN}')
    (tmp_path / "text" / "metrics.json").write_text('{"miou": "0.7"}')
    (tmp_path / "old" / "metrics.json").unlink()
    (tmp_path / "old" / "config.json").write_text('{"steps": 40000}')
    (tmp_path / "damaged" / "config.json").write_text("[]")
    status, out, err = command("table", tmp_path)
    assert (status, err) == (0, "")
    assert cells(out) == []
    listed = dict(line[2:].split(": ", 1) for line in out.splitlines() if line.startswith("- "))
    assert [path.rpartition("/")[2] for path in listed] == [
        *("damaged", "foreign", "nan", "old", "text", "undefined", "unfinished"),
    ]
    damaged, foreign, nan, old, text, undefined, unfinished = listed.values()
    assert "is no JSON object" in damaged
    files = "metrics.json is not from `evaluate`, or config.json not from `train`: "
    assert foreign == f"{files}KeyError('experiment')"
    assert nan == "the mIoU is nan"
    assert old == f"{files}KeyError('evaluation')"
    assert text.startswith(f"{files}TypeError(")
    assert undefined == "there is no value of mIoU or top-1 or mAP"
    assert unfinished == "unfinished, step 4000 of 40000"


def test_a_run_counts_once(command, tmp_path):
    config = segmentation.get_config(ROW)
    protocol = nlj.evaluation.Predictor(config).protocol
    write_run(tmp_path / "seed0" / ROW, config, {"miou": 0.78, "protocol": protocol})
    (tmp_path / "latest").symlink_to("seed0")
    (tmp_path / "seed0" / "loop").symlink_to(tmp_path)
    _, out, _ = command("table", tmp_path, tmp_path / "seed0")
    ((*_, ours, _, _, seeds, _),) = cells(out)
    assert (ours, seeds) == ("78.00", "1 (0)")


def test_refuses(command, tmp_path):
    for arguments, message in (
        ((), "use: python -m experiments.table DIR..."),
        ((tmp_path / "none",), "there is no directory"),
        ((tmp_path,), "there are no runs in"),
    ):
        status, out, err = command("table", *arguments)
        assert (status, out) == (2, "")
        assert message in err
