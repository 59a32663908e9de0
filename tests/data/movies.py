"""Makes small videos, and datasets that are laid out as the real downloads are."""

import csv
import functools
import io
import itertools
import pathlib
import shutil
import tempfile

import av
import numpy as np

SIZE = (48, 64)


@functools.cache
def frames(count, size=SIZE, seed=0):
    """A smooth background that changes slowly, with the number of the frame in gray levels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (2, 3, 4, 3))
    large = coarse.repeat(size[0] // 3, 1).repeat(size[1] // 4, 2)
    mixed = [large[0] + (large[1] - large[0]) * t / max(count - 1, 1) for t in range(count)]
    return np.clip(np.stack(mixed), 0, 255).astype(np.uint8)


@functools.cache
def video(
    count=40,
    size=SIZE,
    *,
    codec="libx264",
    container="mp4",
    gop=8,
    seed=0,
    options=(),
    faststart=False,
    stamps=None,
    rotation=0,
    title="",
):
    """The bytes of an encoded video. ``stamps`` are the times of the frames in 1/30 seconds."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, f"video.{container}")
        flags = {"movflags": "faststart"} if faststart else {}
        with av.open(path, "w", options=flags) as output:
            output.metadata["title"] = title
            stream = output.add_stream(codec, rate=30, options={"g": str(gop), **dict(options)})
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for number, array in enumerate(frames(count, size, seed)):
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                if stamps is not None:
                    frame.pts = stamps[number]
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return path.read_bytes()


@functools.cache
def sound():
    """The bytes of an MP4 file without a video."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def decoded(data):
    """All frames of a video, decoded one after the other."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def bad_videos():
    """Files that are not complete videos, by their kind."""
    whole = video(faststart=True)
    return {
        "truncated": video()[: len(video()) // 2],
        "empty": b"",
        "text": b"<html>Video unavailable</html>\n" * 20,
        "sound": sound(),
        "header": whole[: whole.index(b"mdat") + 8],
    }


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


LABELS = ("zumba", "archery, indoors", "\u00e9crire")
EXAMPLES = {"train": 5, "val": 3}


def kinetics400(directory, examples=EXAMPLES):
    """The folders and lists of the Kinetics-400 download."""
    directory = pathlib.Path(directory)
    numbers = itertools.count()
    for split, count in examples.items():
        rows = []
        for i, number in zip(range(count), numbers, strict=False):
            key, start = f"-id_{number}xyz", 7 * number
            rows.append([LABELS[i % 3], key, start, start + 10, split])
            name = f"{key}_{start:06d}_{start + 10:06d}.mp4"
            write(directory / split / name, video(10 + i, seed=number))
        columns = ("label", "youtube_id", "time_start", "time_end", "split")
        write_table(directory / f"annotations/{split}.csv", columns, rows)
    return directory


CHARADES_CLASSES = "".join(f"c{i:03d} Holding object {i}\n" for i in range(157))
ACTIONS = ("c092 11.90 21.20;c147 0.00 12.60", "", "c000 0.00 5.00", "c156 1 2;c156 3.5 4")


def charades(directory, examples=EXAMPLES):
    """The folders and lists of the Charades download."""
    directory = pathlib.Path(directory)
    numbers = itertools.count()
    for split, count in examples.items():
        rows = []
        for i, number in zip(range(count), numbers, strict=False):
            key = f"ID{number:03d}"
            script = 'A person says "hello",\nand walks away.'
            rows.append([key, "HR43", script, ACTIONS[i % 4], "30.5"])
            write(directory / f"Charades_v1_480/{key}.mp4", video(10 + i, seed=number))
        name = {"train": "train", "val": "test"}[split]
        columns = ("id", "subject", "script", "actions", "length")
        write_table(directory / f"Charades/Charades_v1_{name}.csv", columns, rows)
    (directory / "Charades/Charades_v1_classes.txt").write_text(CHARADES_CLASSES)
    return directory


def video_folder(directory, examples=EXAMPLES):
    """A folder with a directory for each class of each split."""
    directory = pathlib.Path(directory)
    numbers = itertools.count()
    for split, count in examples.items():
        for i, number in zip(range(count), numbers, strict=False):
            name = ("running", "jumping")[i % 2]
            write(directory / f"{split}/{name}/{number}.mp4", video(10 + i, seed=number))
    return directory


ARCHIVES = {"kinetics400": kinetics400, "charades": charades, "video_folder": video_folder}


def all_archives(directory):
    """One download of each kind."""
    return {kind: make(directory / kind) for kind, make in ARCHIVES.items()}


def copy(source, directory):
    return pathlib.Path(shutil.copytree(source, directory))
