"""Runs commands as a user does, in the tests' own process."""

import runpy
import signal
import sys

import pytest
from absl import flags


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``python -m experiments.NAME`` in this process: (exit status, stdout, stderr)."""

    def run(name, *arguments):
        if name in ("train", "evaluate"):  # this process may have used its devices already
            arguments = (*arguments, "--distributed=off")
        monkeypatch.setattr(sys, "argv", [f"experiments.{name}", *map(str, arguments)])
        on_closed_pipe = signal.getsignal(signal.SIGPIPE)  # `python -m experiments` changes it
        try:
            with pytest.raises(SystemExit) as exit_info:
                runpy.run_module(f"experiments.{name}", run_name="__main__")
        finally:
            signal.signal(signal.SIGPIPE, on_closed_pipe)
            _forget_flags()
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return run


def _forget_flags():
    """Lets the next command define its flags again; those of libraries stay."""
    modules = flags.FLAGS.flags_by_module_dict().items()
    names = [f.name for module, own in modules if module.startswith("experiments.") for f in own]
    names += [name for name in flags.FLAGS if name.startswith("config.")]
    for name in names:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.modules.pop("config_config", None)  # ml_collections would run the next file in it
