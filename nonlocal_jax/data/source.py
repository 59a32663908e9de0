"""Random-access sources of examples.

A source is any object with ``len(source)`` and ``source[index]`` that gives a mapping of
``"image"`` (uint8 ``[H, W, 3]``, RGB), ``"label"`` (uint8 ``[H, W]``, class indices or 255) and
``"id"`` (str or int).
"""

import contextlib
import hashlib
import io
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from nonlocal_jax._files import PathLike
from nonlocal_jax.data.classes import IGNORE_INDEX, get_info
from nonlocal_jax.data.images import decode_image, decode_label
from nonlocal_jax.errors import InputError

SPLITS = ("train", "val")
# Those of ``DATASETS`` that load_source can read.
READABLE = ("digits_flag",)

Example = Mapping[str, Any]


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def check_example(example: Example, num_classes: int | None = None) -> None:
    """Holds an example against what a source promises.

    Args:
      example: of a source.
      num_classes: labels must be below it or 255; None leaves them unchecked.

    Raises:
      InputError: a field is missing or its type, shape or values are wrong; names the ``id``.
    """
    if missing := [field for field in ("image", "label", "id") if field not in example]:
        raise InputError(f"an example lacks {', '.join(missing)}; it has {', '.join(example)}")
    image, label = np.asarray(example["image"]), np.asarray(example["label"])
    where = f"example {example['id']!r}"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{where}: need an image uint8 [H, W, 3]; got {image.dtype} {image.shape}")
    if label.dtype != np.uint8 or label.shape != image.shape[:2]:
        raise InputError(
            f"{where}: need a label uint8 {image.shape[:2]} to the image {image.shape}; "
            f"got {label.dtype} {label.shape}"
        )
    if num_classes is not None and np.any((label >= num_classes) & (label != IGNORE_INDEX)):
        values = np.unique(label)
        wrong = values[(values >= num_classes) & (values != IGNORE_INDEX)]
        raise InputError(
            f"{where}: labels must be 0 to {num_classes - 1}, or {IGNORE_INDEX} to be ignored; "
            f"got {', '.join(map(str, wrong))}. Map the raw labels to class indices first"
        )


class CheckedSource:
    """A source whose every example is checked as it is read, see ``check_example``.

    Attributes:
      source: the source to read.
      num_classes: labels must be below it or 255.
      name: of the data, e.g. "digits_flag/train".
    """

    def __init__(self, source: Source, num_classes: int, name: str = ""):
        self.source = source
        self.num_classes = num_classes
        self.name = name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        check_example(example, self.num_classes)
        return example


# What TFDS and array_record raise where a file is missing, cut short or garbled.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)


def _damaged(directory: pathlib.Path, error: Exception) -> InputError:
    return InputError(
        f"the data in {directory} are damaged ({type(error).__name__}: {error}). "
        "Delete that directory, so that they are prepared again"
    )


class _TfdsSource:
    """Decodes the examples of a prepared TFDS dataset: TFDS's own decoding would rotate."""

    def __init__(self, records, directory: pathlib.Path):
        self._records = records
        self._directory = directory

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        try:
            record = self._records[index]
        except _DAMAGE as error:
            raise _damaged(self._directory, error) from error
        name = record["id"].decode()
        return {
            "image": decode_image(record["image"], f"the image of {name!r}"),
            "label": decode_label(record["label"], f"the label of {name!r}"),
            "id": name,
        }


def default_data_dir() -> pathlib.Path:
    """``$NONLOCAL_JAX_DATA``, or else ``~/.cache/nonlocal_jax``."""
    path = os.environ.get("NONLOCAL_JAX_DATA") or "~/.cache/nonlocal_jax"
    return pathlib.Path(path).expanduser()


def load_source(name: str, split: str, data_dir: PathLike | None = None) -> CheckedSource:
    """Opens a split of a dataset; builds ``digits_flag`` on first use.

    Args:
      name: of the dataset.
      split: "train" or "val".
      data_dir: where prepared datasets lie, default ``default_data_dir()``.

    Returns:
      A source, see this module.

    Raises:
      InputError: the dataset is unknown, cannot be read yet or is damaged, the split is unknown,
        or the directory cannot be written.
    """
    info = get_info(name)
    if name not in READABLE:
        raise InputError(
            f"{name} has no reader yet; {', '.join(READABLE)} can be read. The functions of the "
            "library also take any object of yours with len(source) and source[i], a mapping "
            "with image (uint8 [H, W, 3]), label (uint8 [H, W]) and id"
        )
    if split not in SPLITS:
        raise InputError(f"no split {split!r} of {name}: use one of {', '.join(SPLITS)}")
    source = _open_digits_flag(split, pathlib.Path(data_dir or default_data_dir()))
    return CheckedSource(source, info.num_classes, f"{name}/{split}")


def _open_digits_flag(split: str, data_dir: pathlib.Path) -> _TfdsSource:
    # Here, because a user's own source needs no TFDS.
    import tensorflow_datasets as tfds

    from nonlocal_jax.data.digits_flag import DigitsFlag

    directory = data_dir / DigitsFlag.name / str(DigitsFlag.VERSION)
    if not directory.exists():
        _build(DigitsFlag, directory)
    try:
        skip = tfds.decode.SkipDecoding()
        records = tfds.builder_from_directory(directory).as_data_source(
            split, decoders={"image": skip, "label": skip}
        )
    except _DAMAGE as error:
        raise _damaged(directory, error) from error
    return _TfdsSource(records, directory)


def _build(builder, directory: pathlib.Path) -> None:
    """Builds aside, then renames: of several processes at once the first one's result stays."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as aside:
            built = builder(data_dir=aside, file_format="array_record")
            config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=1)
            # TFDS prints of a download that there is none of.
            with contextlib.redirect_stdout(io.StringIO()):
                built.download_and_prepare(download_config=config)
            try:
                os.rename(built.data_dir, directory)
            except OSError:
                if not directory.exists():
                    raise
    except OSError as error:
        raise InputError(
            f"cannot prepare data in {directory}: {error.strerror or error}. Set NONLOCAL_JAX_DATA "
            "to a directory that can be written"
        ) from error


def fingerprint(source: Source) -> str:
    """A short hash of a source: its name, its length and its first, middle and last example.

    Cheap, so it tells one dataset from another, not every change of a single example.
    """
    digest = hashlib.sha256(f"{getattr(source, 'name', '')} {len(source)}".encode())
    for index in sorted({0, len(source) // 2, len(source) - 1} if len(source) else ()):
        example = source[index]
        digest.update(repr(example["id"]).encode())
        for field in ("image", "label"):
            array = np.ascontiguousarray(example[field])
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array)
    return digest.hexdigest()[:16]
