import pathlib
import shutil
import sys

import pytest

pytestmark = pytest.mark.usefixtures("libtpu")

_RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results" / "compile"


def test_the_published_table_is_complete_and_that_of_its_reports(tmp_path, command, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # nothing is compiled again
    for report in _RESULTS.glob("*.json"):
        shutil.copy(report, tmp_path)
    status, _, stderr = command("compile_table", f"--output={tmp_path}")
    assert status == 0, stderr
    assert (tmp_path / "README.md").read_text() == (_RESULTS / "README.md").read_text()


def test_a_name_that_no_cell_has_is_refused(tmp_path, command):
    status, _, stderr = command("compile_table", f"--output={tmp_path / 'out'}", "--only=r5O")
    assert status == 2
    assert "no cell has a name with 'r5O'" in stderr
    assert "nonlocal_r50_train_v5e_2x4" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (r"echo 'a log'; printf 'error: no TPU\nInstall it\n'; exit 2", "no TPU\nInstall it"),
        ("echo 'a log'; kill -KILL $$", "a signal ended the compiler (Killed) a log"),
        ("exit 3", "the compiler ended without a message"),
    ],
)
def test_the_message_of_a_failed_cell(tmp_path, command, monkeypatch, end, message):
    compiler = tmp_path / "python"
    compiler.write_text(f"#!/bin/sh\nexec >&2\n{end}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(compiler))
    status, _, stderr = command("compile_table", f"--output={tmp_path / 'out'}")
    assert status == 2
    assert stderr.endswith(f"error: nonlocal_r50_train_v5e_2x4: {message}\n")
