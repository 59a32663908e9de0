"""Where prepared datasets are: on this host, or in a bucket that is copied to it."""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable

from etils import epath

from nonlocal_jax._files import PathLike, bucket_errors, local_path
from nonlocal_jax._progress import progress
from nonlocal_jax.data._cores import parallel_map
from nonlocal_jax.data._once import create_once
from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import BUILT_ON_USE
from nonlocal_jax.errors import InputError

# The next version of a dataset is prepared again, and older files are not read.
_VERSIONS = {"digits_flag": "2.1.0"}
VERSION = "1.0.0"
_CHUNK = 1 << 24


def default_data_dir() -> epath.Path:
    """Returns ``$NONLOCAL_JAX_DATA`` if it is set, else ``~/.cache/nonlocal_jax``.

    Raises:
      InputError: The variable is a URL.
    """
    return local_path(os.environ.get("NONLOCAL_JAX_DATA") or "~/.cache/nonlocal_jax")


def local_directory(name: str, data_dir: PathLike | None) -> epath.Path:
    """Returns the directory of a prepared dataset on this host: ``DATA_DIR/NAME/VERSION``.

    Raises:
      InputError: ``data_dir`` is a URL.
    """
    root = local_path(data_dir or default_data_dir())
    return root / name / _VERSIONS.get(name, VERSION)


def find_directory(name: str, data_dir: PathLike | None) -> epath.Path:
    """Returns the directory of a prepared dataset on this host. It need not exist.

    If ``data_dir`` is a URL, the dataset is copied from there. The copy is in the default directory
    of prepared datasets, under the URL and a hash of it and of the manifest. It is made once for
    all processes of a host. ``BUILT_ON_USE`` are not copied, because each host can build them.

    Raises:
      InputError: The bucket cannot be read, or it does not contain the dataset.
    """
    if data_dir is None or "://" not in os.fspath(data_dir):
        return local_directory(name, data_dir)
    if name in BUILT_ON_USE:
        return local_directory(name, None)
    url = os.fspath(data_dir).rstrip("/")
    remote = epath.Path(url) / name / VERSION
    with bucket_errors(url):
        try:
            manifest = (remote / _manifest.FILE).read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"{name} is not in {url}: there is no {remote / _manifest.FILE}; prepare it in a "
                "local directory and upload this directory"
            ) from error
    key = hashlib.sha256(url.encode() + manifest).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", url)
    directory = local_directory(name, default_data_dir() / "copies" / f"{slug}-{key}")
    create_directory(directory, functools.partial(_copy, remote, manifest))
    return directory


def create_directory(directory: epath.Path, write: Callable[[epath.Path], None]) -> bool:
    """Creates the directory of a prepared dataset, unless it exists, see ``create_once``.

    Raises:
      InputError: The directory cannot be written.
    """
    try:
        return create_once(directory, write)
    except OSError as error:
        raise InputError(
            f"cannot prepare data in {directory}: {error.strerror or error}; use --data-dir or "
            "NONLOCAL_JAX_DATA to choose a writable directory with enough free space"
        ) from error


def _copy(remote: epath.Path, manifest: bytes, target: epath.Path) -> None:
    def copy(name: str) -> None:
        with bucket_errors(remote):
            source = (remote / name).open("rb")
        with source, (target / name).open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)

    names = _manifest.read_sizes(manifest)
    for _ in progress(parallel_map(copy, names), len(names), f"copying {remote}", unit="file"):
        pass
    (target / _manifest.FILE).write_bytes(manifest)
    if reason := _manifest.damage(target):
        raise InputError(f"{remote} is damaged: {reason}; upload it again")
