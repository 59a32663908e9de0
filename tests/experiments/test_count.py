"""``experiments.count`` reproduces the relative numbers of the NL paper."""

import re

import pytest

# Table 2e: parameters and multiply-adds relative to C2D R-101.
PAPER = {
    "i3d_r101_baseline_32f": (1.1947, 1.4645),
    "i3d_r101_3x3x3_32f": (1.4553, 1.7633),
    "nl_c2d_r101_5block_32f": (1.1698, 1.2317),
}


def test_the_relative_numbers_of_table_2e(command):
    status, out, _ = command("count", *PAPER)
    assert status == 0
    rows = [re.findall(r"[^| ]+", line) for line in out.splitlines()[2:]]
    assert rows[0][:3] == ["c2d_r101_baseline_32f", "43,319,760", "1.0000"]
    assert [row[0] for row in rows[1:]] == list(PAPER)
    for name, _, parameters, _, products in rows[1:]:
        assert (float(parameters), float(products)) == pytest.approx(PAPER[name], abs=1e-4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--clip=32x224", "--clip is '32x224'; use FRAMESxHEIGHTxWIDTH, as in 32x224x224"),
        ("--baseline=c2d_r101", "unknown experiment 'c2d_r101'; use one of c2d_r101_baseline_32f"),
        ("--clip=1x224x224", "clips with more frames"),
    ],
)
def test_wrong_arguments_end_with_one_message(command, argument, message):
    status, out, error = command("count", argument)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
