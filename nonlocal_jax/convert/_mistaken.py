"""Explains why a file cannot be read. Many files are something else than their name says."""

import re

from nonlocal_jax._files import PathLike
from nonlocal_jax.errors import InputError, first_line

_AGAIN = "download the file itself"

# (how the content begins, what it is, what to do)
_MISTAKEN = (
    (
        rb"(?i)\s*<(!doctype html|html|head|body)",
        "an HTML page, such as the error or login page of a web site",
        f"open the address in a browser, and {_AGAIN}",
    ),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, which only names the file",
        f"run `git lfs pull` where it was cloned, or {_AGAIN}",
    ),
    (rb"\s*<\?xml|\s*<Error>", "XML, such as the error message of a file server", _AGAIN),
    (rb'\s*[{\[]\s*["{\[]', "JSON text, such as the error message of a web site", _AGAIN),
    (rb"\x1f\x8b", "compressed by gzip", "decompress it with gunzip, or with tar if it is .tar.gz"),
    (rb"BZh", "compressed by bzip2", "decompress it with bunzip2"),
    (rb"\xfd7zXZ", "compressed by xz", "decompress it with unxz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it with unzstd"),
    (rb"(?s).{257}ustar", "a tar archive", "extract the checkpoint with tar"),
    (rb"PK\x03\x04", "a PyTorch checkpoint", "use the suffix .pth"),
    (rb"(?s).{5}\0\0\0\s*\{", "a .safetensors file", "use the suffix .safetensors"),
    (rb"(?s)\x80[\x02-\x05]", "a PyTorch checkpoint", "use the suffix .pth"),
)


def damaged(path: PathLike, kind: str, error: Exception) -> InputError:
    """Returns the error to raise if reading a checkpoint failed.

    Args:
      path: The file.
      kind: What it should be, "a PyTorch checkpoint" or "a .safetensors file".
      error: What reading it raised.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    mistaken, advice = next(
        (what for pattern, *what in _MISTAKEN if re.match(pattern, head)), (kind, "")
    )
    if mistaken != kind:
        return InputError(f"{path} is {mistaken}, not {kind}; {advice}")
    reason = f"{type(error).__name__}: {first_line(error)}"
    return InputError(f"{path} is damaged or not {kind} ({reason}); download or save it again")
