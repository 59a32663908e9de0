"""Decodes the videos of a download, and encodes them as they are stored."""

import dataclasses
import fractions
import hashlib
import io
import os
from typing import Any

import numpy as np
from etils import epath

from nonlocal_jax._files import write_file
from nonlocal_jax.data.clips import resized_size
from nonlocal_jax.data.datasets._layout import VideoFile
from nonlocal_jax.data.datasets._scan import Facts
from nonlocal_jax.data.videos import Converter, EncodedVideo, decode, import_av, upright_size
from nonlocal_jax.errors import InputError

# How a video is stored: the codec, its pixels and its options. "copy" keeps the file.
_CODECS = {
    # A key frame every 32 frames: a clip is decoded from the key frame before it.
    "h264": ("libx264", "yuv420p", {"crf": "20", "g": "32", "threads": "1"}),
    "jpeg": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "2"}),
}
STORAGES = (*_CODECS, "copy")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes videos into a directory, where a later run finds them.

    Attributes:
      storage: One of ``STORAGES``.
      short_side: Longer sides are reduced, so that the shorter one has this number of pixels.
      directory: Directory of the encoded videos. It is created if necessary.
    """

    storage: str
    short_side: int
    directory: epath.Path

    def scan(self, video: VideoFile) -> Facts:
        """Decodes a video whole and encodes it, unless an earlier run has done it."""
        data = None
        try:
            path = self._path(video)
            if not path.exists():
                data = self._encode(video)
        except OSError as error:
            reason = error.strerror or error
            return Facts([f"{video.file.name} cannot be read ({reason}); check the file"])
        except InputError as error:
            return Facts([str(error)])
        if data is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_file(path, data)
        with np.load(path) as stored:
            found, listed = len(stored["timestamps"]), int(stored["listed"])
        note = f"{video.file.name}: {found:,} of {listed:,} frames can be decoded"
        return Facts([], size=os.stat(path).st_size, notes=(note,) if found < listed else ())

    def record(self, video: VideoFile) -> dict[str, Any]:
        """Returns an example to store."""
        with np.load(self._path(video)) as file:
            stored = dict(file)
        height, width = stored["size"].tolist()
        return {
            "video": stored["video"].tobytes(),
            "label": video.label,
            "id": video.id,
            "num_frames": len(stored["timestamps"]),
            "height": height,
            "width": width,
            "timestamps": stored["timestamps"],
            "key_frames": stored["key_frames"],
        }

    def _path(self, video: VideoFile) -> epath.Path:
        """Returns where a video is stored. The name changes with the file and the options."""
        status = os.stat(video.file.path)
        facts = self.storage, self.short_side, video.file.name, status.st_size, status.st_mtime_ns
        return self.directory / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.npz"

    def _encode(self, video: VideoFile) -> bytes:
        data = video.file.read()
        source = EncodedVideo(data, video.file.name)
        with source.open() as container:
            listed = container.streams.video[0].frames
        if self.storage != "copy":
            data = encode(source, self.storage, self.short_side)
        timestamps, key_frames, size = EncodedVideo(data, video.file.name).index
        file = io.BytesIO()
        np.savez(
            file,
            video=np.frombuffer(data, np.uint8),
            timestamps=timestamps,
            key_frames=key_frames,
            size=size,
            listed=listed,
        )
        return file.getvalue()


def encode(video: EncodedVideo, storage: str, short_side: int) -> bytes:
    """Encodes a video as MP4, without sound and with upright frames.

    Args:
      video: The video.
      storage: "h264" or "jpeg".
      short_side: See ``Encoder``.

    Raises:
      InputError: The video is damaged.
    """
    av = import_av()
    codec, pixels, options = _CODECS[storage]
    resize = av.video.reformatter.VideoReformatter().reformat
    file = io.BytesIO()
    with video.open() as container, av.open(file, "w", format="mp4") as output:
        rate = container.streams.video[0].average_rate
        rate = fractions.Fraction(rate if rate and rate < 1000 else 30)
        stream = output.add_stream(codec, rate=rate, options=options)
        for number, frame in enumerate(decode(container)):
            if number == 0:
                size = upright_size(frame)
                upright = Converter(size)
                reduced = resized_size(size, min(short_side, *size), "floor")
                # The colors have half of the resolution, so both sides must be even.
                height, width = (max(2, n // 2 * 2) for n in reduced)
            # JPEG has one color space of its own. H.264 keeps that of the video.
            if frame.rotation or storage == "jpeg":
                frame = av.VideoFrame.from_ndarray(upright(frame), format="rgb24")
            frame = resize(frame, width, height, format=pixels, interpolation="BICUBIC")
            if number == 0:
                context = stream.codec_context
                context.width, context.height, context.pix_fmt = width, height, pixels
                context.colorspace, context.color_range = frame.colorspace, frame.color_range
            frame.pict_type = av.video.frame.PictureType.NONE
            frame.pts, frame.time_base = number, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()
