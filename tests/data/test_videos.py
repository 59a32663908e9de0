"""Videos: the frames that are read, and files that cannot be read."""

import itertools
import pickle
import re

import numpy as np
import pytest

from nonlocal_jax.data import EncodedVideo, FrameArray
from nonlocal_jax.data import videos as module
from nonlocal_jax.data.images import encode_png
from nonlocal_jax.errors import InputError
from tests.data import movies

_B_FRAMES = (("bf", "2"), ("sc_threshold", "0"))
FILES = {
    "mp4": lambda: movies.video(),
    "short GOPs": lambda: movies.video(gop=3, options=(("bf", "3"),)),
    "jpeg": lambda: movies.video(codec="mjpeg", gop=1),
    "mkv": lambda: movies.video(container="mkv"),
    "avi": lambda: movies.video(codec="mpeg4", container="avi"),
    "MPEG-TS": lambda: movies.video(codec="mpeg2video", container="ts", options=_B_FRAMES),
    "MPEG-PS": lambda: movies.video(codec="mpeg2video", container="mpg", gop=4, options=_B_FRAMES),
    "no time stamps": lambda: movies.video(container="h264"),
    "one frame": lambda: movies.video(1),
}
STAMPS = tuple(itertools.accumulate([0, *[1, 7, 2, 30] * 9, 1, 1, 100]))


def test_an_array_is_a_video():
    frames = movies.frames(5)
    video = pickle.loads(pickle.dumps(FrameArray(frames)))
    assert (video.num_frames, video.size) == (5, movies.SIZE)
    np.testing.assert_array_equal(video.read([3, 0, 3]), frames[[3, 0, 3]])
    for wrong in (frames[0], frames / 255, frames[..., :2], frames[:0]):
        with pytest.raises(InputError, match="use uint8 RGB"):
            FrameArray(wrong)


@pytest.mark.parametrize("kind", FILES)
def test_the_frames_are_those_of_the_whole_video(kind):
    data = FILES[kind]()
    frames = movies.decoded(data)
    video = EncodedVideo(data)
    assert (video.num_frames, video.size) == (len(frames), movies.SIZE)
    again = pickle.loads(pickle.dumps(EncodedVideo(data, index=video.index)))
    last = len(frames) - 1
    for indices in (
        [last, 0, last // 2, last],
        [last // 2 + 1],
        [3 * last // 4],
        range(len(frames)),
    ):
        indices = np.minimum(list(indices), last)
        np.testing.assert_array_equal(again.read(indices), frames[indices])


def test_frames_of_a_variable_rate_are_counted(tmp_path):
    data = movies.video(stamps=STAMPS)
    video = EncodedVideo(movies.write(tmp_path / "a.mp4", data))
    assert video.num_frames == 40
    steps = np.diff(video.index.timestamps)
    assert steps.max() == 100 * steps.min()
    indices = [39, 17, 2]
    np.testing.assert_array_equal(video.read(indices), movies.decoded(data)[indices])


def test_only_the_wanted_part_is_decoded(monkeypatch):
    data = movies.video()
    index = EncodedVideo(data).index
    assert index.key_frames.tolist() == [0, 8, 16, 24, 32]
    decoded = []
    decode = module.decode

    def count(container):
        for frame in decode(container):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(module, "decode", count)
    EncodedVideo(data, index=index).read([34, 17])
    assert decoded == index.timestamps[[16, 17, 32, 33, 34]].tolist()


@pytest.mark.parametrize("skipped", [1, 8])
def test_frames_are_found_if_a_seek_leads_too_far(skipped, monkeypatch):
    data = movies.video()
    frames = movies.decoded(data)
    index = EncodedVideo(data).index
    decode, calls = module.decode, []

    def skip_a_key_frame(container):
        calls.append(container)
        return itertools.islice(decode(container), skipped * (len(calls) == 1), None)

    monkeypatch.setattr(module, "decode", skip_a_key_frame)
    np.testing.assert_array_equal(EncodedVideo(data, index=index).read([19, 10]), frames[[19, 10]])
    assert len(calls) == 3


def test_an_image_is_refused():
    image = encode_png(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=r"a.png is an image; use a video instead"):
        len(EncodedVideo(image, "a.png").index)


def test_a_file_that_has_changed_is_refused():
    index = EncodedVideo(movies.video()).index
    with pytest.raises(InputError, match=r"frame 20 of x cannot be decoded.*has changed"):
        EncodedVideo(movies.video(8), "x", index).read([3, 20])


@pytest.mark.parametrize(("indices", "wrong"), [([3, 40, 41], [40, 41]), ([-1], [-1]), ([], [])])
def test_frames_that_a_video_does_not_have_are_refused(indices, wrong):
    message = f"the frames {wrong} of x cannot be read; use one or more of the frames 0 to 39"
    with pytest.raises(InputError, match=re.escape(message)):
        EncodedVideo(movies.video(), "x").read(indices)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(rotation):
    video = EncodedVideo(movies.video(4, rotation=rotation))
    frames = np.rot90(movies.decoded(movies.video(4)), rotation // 90, axes=(1, 2))
    assert video.size == frames.shape[1:3]
    np.testing.assert_array_equal(video.read(range(4)), frames)


@pytest.mark.parametrize("kind", movies.bad_videos())
def test_a_bad_file_is_named(kind, tmp_path):
    path = movies.write(tmp_path / f"{kind}.mp4", movies.bad_videos()[kind])
    for video in (EncodedVideo(path), EncodedVideo(path.read_bytes(), str(path))):
        for use in (lambda v: v.num_frames, lambda v: v.size, lambda v: v.read([0])):
            with pytest.raises(InputError) as error_info:
                use(video)
            message = str(error_info.value)
            assert message.startswith(str(path))
            assert message.endswith("replace the file") or "replace it" in message
            assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.mp4: No such file.*check the path"):
        EncodedVideo(tmp_path / "none.mp4").read([0])


def test_the_frames_of_a_truncated_file_are_counted():
    """Its header lists all of them."""
    data = movies.video(faststart=True)
    start = data.index(b"mdat") + 4
    cut = data[: start + (len(data) - start) * 6 // 10]
    video = EncodedVideo(cut)
    assert 5 < video.num_frames < 40
    with video.open() as container:
        assert container.streams.video[0].frames == 40
    last = video.num_frames - 1
    frames = video.read(range(video.num_frames))
    np.testing.assert_array_equal(frames[: last - 3], movies.decoded(data)[: last - 3])
    np.testing.assert_array_equal(video.read([last])[0], frames[last])


def test_metadata_need_not_be_text():
    data = movies.video(3, title="NOT TEXT")
    wrong = data.replace(b"NOT TEXT", b"\xff\xfe\xe9 TEXT")
    assert wrong != data
    assert EncodedVideo(wrong).num_frames == 3


def test_pyav_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(InputError, match=r"needs av.*pip install 'nonlocal_jax\[video\]'"):
        EncodedVideo(b"").read([0])
