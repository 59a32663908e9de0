"""The names of the experiments, and the files in values of --config."""

import fnmatch
import pathlib

from nonlocal_jax.configs import segmentation, video
from nonlocal_jax.configs.common import nearest_names
from nonlocal_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parents[1]
_FILES = {
    "configs/segmentation.py": segmentation.NAMES,
    "configs/video.py": (*video.NAMES, *video.ALIASES),
}


def all_configs() -> list[str]:
    """Returns the value of --config of each experiment."""
    return [f"{file}:{name}" for file, names in _FILES.items() for name in names]


def match_configs(pattern: str = "*") -> list[str]:
    """Returns the value of --config of each experiment whose name matches a pattern of a shell.

    Raises:
      InputError: No experiment matches. The message names the most similar ones.
    """
    configs = {config.partition(":")[2]: config for config in all_configs()}
    matches = [config for name, config in configs.items() if fnmatch.fnmatchcase(name, pattern)]
    if not matches:
        near = nearest_names(pattern.replace("*", ""), [*configs])
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"no experiment matches {pattern!r}; `python -m experiments names` lists all{hint}"
        )
    return matches


def find_config(given: str) -> str:
    """Returns a value of --config, such as configs/FILE.py:NAME, with the path of a file.

    The path is relative to the working directory, or else to the root of this clone.

    Raises:
      InputError: There is no such file or experiment. The message names the most similar ones.
    """
    file, colon, name = given.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        path = _ROOT / file
    known = {(_ROOT / other).resolve(): names for other, names in _FILES.items()}
    wanted = name
    if not path.is_file():
        problem, wanted = f"there is no file {file!r}", name or file
    elif name in known.get(path.resolve(), (name,)):
        return f"{path}{colon}{name}"
    elif name:
        problem = f"there is no experiment {name!r}"
    else:
        problem = "the name of an experiment is missing"
    configs = {config.partition(":")[2]: config for config in all_configs()}
    near = [configs[other] for other in nearest_names(wanted, configs)] if wanted else []
    usage = " or ".join(f"--config={config}" for config in near or ("configs/FILE.py:NAME",))
    raise InputError(
        f"--config={given}: {problem}; use {usage}\n"
        "`python -m experiments names` lists all experiments"
    )
