"""Videos: arrays of frames, and encoded files of which only the wanted frames are decoded."""

import contextlib
import io
import itertools
import os
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from etils import epath

from nonlocal_jax._files import PathLike
from nonlocal_jax.data.images import list_files
from nonlocal_jax.errors import InputError

if TYPE_CHECKING:
    import av

# In other formats, a seek may lead to a place whose frames have wrong time stamps.
_SEEKABLE = ("mov,mp4", "matroska,webm")
SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def list_videos(paths: Iterable[PathLike]) -> list[epath.Path]:
    """Replaces each directory with the video files in it, sorted by name. Files are kept.

    Raises:
      InputError: A path does not exist, or a directory contains no video file.
    """
    return list_files(paths, SUFFIXES, "videos")


class Video(Protocol):
    """A video of which single frames can be read.

    Attributes:
      num_frames: Number of frames.
      size: (height, width) in pixels.
    """

    @property
    def num_frames(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns frames in the order of ``indices``: RGB, uint8 ``[len(indices), H, W, 3]``."""


class FrameArray:
    """A video whose frames are in an array."""

    def __init__(self, frames: np.ndarray):
        """Wraps RGB frames, uint8 ``[T, H, W, 3]``.

        Raises:
          InputError: The type or the shape is wrong.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            raise InputError(
                f"the frames are {frames.dtype} {frames.shape}; use uint8 RGB [T, H, W, 3]"
            )
        self._frames = frames

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> tuple[int, int]:
        return self._frames.shape[1:3]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self._frames[np.asarray(indices)]


class FrameIndex(NamedTuple):
    """The frames of an encoded video, in the order in which they are shown.

    Attributes:
      timestamps: The time stamp of each frame, int64 ``[num_frames]``, in units of the file.
      key_frames: Numbers of the frames at which decoding can begin. The first one is 0.
      size: (height, width) of a frame, after the rotation that the file asks for.
    """

    timestamps: np.ndarray
    key_frames: np.ndarray
    size: tuple[int, int]


class EncodedVideo:
    """A video file, such as MP4, of which only the wanted frames are decoded.

    A frame is found by its time stamp: decoding begins at the last key frame before it. The number
    of frames is the number that can be decoded, which is less than the header says if the file is
    truncated. Frames are rotated as the file asks for. The first use of ``num_frames``, ``size`` or
    ``read`` decodes the whole video to find its frames, unless their index is given.

    The object can be pickled. It needs PyAV, of the extra ``video``.
    """

    def __init__(
        self,
        data: bytes | str | os.PathLike[str],
        name: str | None = None,
        index: FrameIndex | None = None,
    ):
        """Describes a video. Nothing is read yet.

        Args:
          data: The content of the file, or its path.
          name: What error messages call the video. Default: the path.
          index: The ``index`` of the same video, from an earlier use.
        """
        self._data = data if isinstance(data, bytes) else os.fspath(data)
        self._name = name or ("the video" if isinstance(data, bytes) else str(data))
        self._index = index

    @property
    def index(self) -> FrameIndex:
        """The frames of the video.

        Raises:
          InputError: The file cannot be read, or has no frame that can be decoded.
        """
        if self._index is None:
            self._index = self._find_frames()
        return self._index

    @property
    def num_frames(self) -> int:
        return len(self.index.timestamps)

    @property
    def size(self) -> tuple[int, int]:
        return self.index.size

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns frames: RGB, uint8 ``[len(indices), H, W, 3]``.

        Args:
          indices: Numbers of the frames, from 0 to ``num_frames - 1``, in any order.

        Raises:
          InputError: There is no index, or no frame of an index, or the file cannot be read or is
            damaged.
        """
        timestamps, key_frames, size = self.index
        wrong = [int(index) for index in indices if not 0 <= index < len(timestamps)]
        if wrong or not len(indices):
            raise InputError(
                f"the frames {wrong} of {self._name} cannot be read; use one or more of the frames "
                f"0 to {len(timestamps) - 1}"
            )
        wanted, inverse = np.unique(indices, return_inverse=True)
        starts = key_frames[np.searchsorted(key_frames, wanted, side="right") - 1]
        convert = Converter(size)
        frames: list[np.ndarray] = []
        with self.open() as container:
            for start in np.unique(starts):
                numbers = wanted[starts == start]
                found = _take(self._decode_from(container, start), numbers, convert)
                if len(found) < len(numbers):  # in some files, a seek leads to a later key frame
                    with self.open() as reopened:
                        found = _take(enumerate(decode(reopened)), numbers, convert)
                if len(found) < len(numbers):
                    raise InputError(
                        f"frame {numbers[len(found)]} of {self._name} cannot be decoded; the file "
                        "is damaged or has changed, so replace it"
                    )
                frames += found
        return np.stack([frames[place] for place in inverse])

    def _find_frames(self) -> FrameIndex:
        stamps: list[int | None] = []
        keys = {0}
        with self.open() as container:
            seekable = container.format.name.startswith(_SEEKABLE)
            for frame in decode(container):
                if not stamps:
                    size = upright_size(frame)
                if frame.key_frame:
                    keys.add(len(stamps))
                stamps.append(frame.pts)
        if not stamps:
            raise InputError(f"{self._name} has no frame that can be decoded; replace the file")
        if None in stamps or any(b <= a for a, b in itertools.pairwise(stamps)):
            stamps, seekable = list(range(len(stamps))), False
        if not seekable:  # frames are counted from the first one
            keys = {0}
        return FrameIndex(np.array(stamps, np.int64), np.array(sorted(keys), np.int64), size)

    def _decode_from(
        self, container: "av.container.InputContainer", start: int
    ) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yields the frames from a key frame on, with their numbers."""
        if start == 0:  # also in files whose time stamps are not in order
            yield from enumerate(decode(container))
            return
        timestamps = self.index.timestamps.tolist()
        numbers = {stamp: number for number, stamp in enumerate(timestamps)}
        container.seek(timestamps[start], stream=container.streams.video[0])
        # Frames that are shown before a key frame may refer to frames that were not decoded.
        for frame in itertools.dropwhile(lambda frame: not frame.key_frame, decode(container)):
            if frame.pts in numbers:
                yield numbers[frame.pts], frame

    @contextlib.contextmanager
    def open(self) -> Iterator["av.container.InputContainer"]:
        """Opens the file. Its content decides what it is, and not its name.

        Raises:
          InputError: The file cannot be read, or is not a video.
        """
        av = import_av()
        data = self._data if isinstance(self._data, bytes) else _read(self._data)
        # Before version 19, PyAV refuses metadata that is not UTF-8.
        old = int(av.__version__.partition(".")[0]) < 19
        options = {"metadata_errors": "ignore"} if old else {}
        try:
            with av.open(io.BytesIO(data), **options) as container:
                if container.format.name.endswith("_pipe"):  # of FFmpeg's readers of images
                    raise InputError(f"{self._name} is an image; use a video instead")
                if not container.streams.video or container.streams.video[0].codec_context is None:
                    raise InputError(f"{self._name} has no video that can be decoded; replace it")
                # Examples are decoded in parallel already.
                container.streams.video[0].thread_type = "NONE"
                yield container
        except av.FFmpegError as error:
            raise InputError(
                f"{self._name} is damaged or not a video ({error.strerror}, {len(data):,} bytes); "
                "replace the file"
            ) from error


class Converter:
    """Converts decoded frames to upright RGB arrays of one size, uint8 ``[H, W, 3]``."""

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._reformatter = import_av().video.reformatter.VideoReformatter()

    def __call__(self, frame: "av.VideoFrame") -> np.ndarray:
        height, width = self._size[::-1] if frame.rotation % 180 else self._size
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24")
        return np.rot90(rgb.to_ndarray(), frame.rotation // 90)


def _take(
    numbered: Iterable[tuple[int, "av.VideoFrame"]], numbers: np.ndarray, convert: Converter
) -> list[np.ndarray]:
    """Returns the frames with these numbers, up to the first one that cannot be decoded."""
    found: list[np.ndarray] = []
    for number, frame in numbered:
        if number == numbers[len(found)]:
            found.append(convert(frame))
        if len(found) == len(numbers) or number > numbers[len(found)]:
            break
    return found


def upright_size(frame: "av.VideoFrame") -> tuple[int, int]:
    """Returns (height, width) of a frame after its rotation."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def decode(container: "av.container.InputContainer") -> Iterator["av.VideoFrame"]:
    """Yields the frames of an open video that can be decoded. The others are left out."""
    from av.error import InvalidDataError

    # Reading ends where the file is truncated.
    with contextlib.suppress(InvalidDataError):
        for packet in container.demux(container.streams.video[0]):
            with contextlib.suppress(InvalidDataError):
                yield from packet.decode()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error


def import_av() -> types.ModuleType:
    """Returns the module of PyAV.

    Raises:
      InputError: It is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError(
            "reading videos needs av, which is not installed; run pip install 'nonlocal_jax[video]'"
        ) from error
    return av
