import os

import jax
import pytest

from nonlocal_jax import compilation
from nonlocal_jax.errors import InputError

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """The home directory of a user without settings of JAX's cache."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache_directory(home):
    compilation.use_cache()
    directory = home / ".cache" / "nonlocal_jax" / "compiled"
    assert directory.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(directory)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_another_directory_or_none(home, monkeypatch):
    compilation.use_cache(home / "other")
    assert jax.config.jax_compilation_cache_dir == str(home / "other")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == str(home / "other")
    compilation.use_cache("off")
    assert not jax.config.jax_enable_compilation_cache
    assert os.listdir(home) == ["other"]


def test_a_directory_that_cannot_be_written(home, capsys):
    """It is refused if the user has named it, and the default is done without."""
    (home / ".cache").write_text("")
    compilation.use_cache()
    assert "warning: compiled programs are not kept, because" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"cannot write to the directory .*\.cache/mine"):
        compilation.use_cache(home / ".cache" / "mine")


def test_programs_are_counted():
    with compilation.count_programs() as programs:
        jax.jit(lambda x: x * 41 + 7)(1.0)
    assert programs["built"] == 1
    with compilation.count_programs() as programs:
        pass
    assert not programs
