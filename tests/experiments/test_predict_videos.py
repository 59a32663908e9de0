"""The command predict with videos."""

import json
import pathlib

import cv2
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import video
from nonlocal_jax.tasks import predict
from tests.data import movies
from tests.helpers import random_variables

FLAGS = ("--config=configs/video.py:demo_video_nonlocal", "--config.model.width=4")
DATASET = nlj.data.get_dataset("digits_odd")


def narrow(name="demo_video_nonlocal", **evaluation):
    config = video.get_config(name)
    config.model.width = 4
    config.evaluation.update(evaluation)
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = narrow().model
    path = tmp_path_factory.mktemp("checkpoint") / "demo.safetensors"
    nlj.convert.save(path, random_variables(config), config)
    return path


def predict_bytes(config, data, **options):
    """The prediction of a video with random variables, without the command."""
    predictor = predict.video_predictor(config, **options)
    run = predictor.predict(random_variables(config.model), DATASET)
    return run(pathlib.Path("clip.mp4"), predictor.read(data))


@pytest.mark.parametrize("name", ["kinetics400", "charades"])
def test_the_classes_of_a_pytorch_file_are_known_without_data(command, tmp_path, name):
    classes = nlj.data.get_dataset(name).classes
    config = narrow("demo_video_none").model
    config.num_classes = len(classes)
    nlj.convert.export_torch(tmp_path / "model.pth", random_variables(config), config)
    (tmp_path / "a.mp4").write_bytes(movies.video(20))
    status, _, err = command(
        "predict",
        "--config=configs/video.py:demo_video_none",
        *("--config.model.width=4", f"--config.model.num_classes={len(classes)}"),
        *(f"--config.data.name={name}", f"--data_dir={tmp_path / 'empty'}"),
        *(f"--checkpoint={tmp_path / 'model.pth'}", f"--output={tmp_path / 'out'}"),
        tmp_path / "a.mp4",
    )
    assert status == 0, err
    found = json.loads((tmp_path / "out" / "a.json").read_text())["classes"]
    assert len({c["name"] for c in found} & set(classes)) == 5


def test_predict_writes_scores_and_attention_and_names_all_bad_videos(
    command, checkpoint, tmp_path
):
    folder, output = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(movies.video(20))
    (folder / "b.MP4").write_bytes(movies.video(7, seed=1))  # shorter than the clip
    (folder / "c.mkv").write_bytes(b"text")
    (folder / "notes.txt").write_text("no video")
    status, out, err = command(
        "predict", *FLAGS, f"--checkpoint={checkpoint}", f"--output={output}", folder
    )
    assert status == 2
    assert "predicting: video 3 of 3" in err
    assert "cannot predict 1 of 3 videos" in err
    assert "c.mkv is damaged" in err
    assert out.endswith(f"wrote NAME.json and NAME_attention.png of 2 videos to {output}\n")
    assert sorted(path.name for path in output.iterdir()) == [
        *("a.json", "a_attention.png", "b.json", "b_attention.png")
    ]
    values = json.loads((output / "a.json").read_text())
    config = narrow()
    views = nlj.data.read_views(nlj.data.EncodedVideo(movies.video(20)), config)
    variables = nlj.convert.load(checkpoint, config.model)
    (scores,) = nlj.evaluation.VideoPredictor(config)(variables)([views])
    best = np.argsort(-scores)
    assert [c["name"] for c in values["classes"]] == [DATASET.classes[c] for c in best]
    np.testing.assert_allclose([c["score"] for c in values["classes"]], scores[best], rtol=1e-6)
    assert values["protocol"]["name"] == "1clip"
    assert values["block"] == "layer1.0"
    assert f"{folder / 'a.mp4'}\n  {DATASET.classes[best[0]]} {100 * scores[best[0]]:.1f} %" in out
    picture = cv2.imread(str(output / "a_attention.png"))
    assert picture.shape[1] > 8 * 160
    assert picture.std() > 20


def test_the_position_is_that_of_the_flag(command, checkpoint, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(movies.video(20))
    given = (*FLAGS, f"--checkpoint={checkpoint}", f"--output={tmp_path}", clip)
    status, _, err = command("predict", *given, "--position=7,31,0")
    assert status == 0, err
    assert json.loads((tmp_path / "clip.json").read_text())["position"] == [7, 31, 0]


def test_scores_are_probabilities_of_all_views():
    data = movies.video(40, size=(40, 64))
    config = narrow(clips=2, crops=3, average="logits")
    values = predict_bytes(config, data).outputs[".json"]
    assert values["protocol"]["name"] == "2x3"
    assert sum(c["score"] for c in values["classes"]) == pytest.approx(1)
    config.loss.kind = "sigmoid"
    scores = [c["score"] for c in predict_bytes(config, data).outputs[".json"]["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert sum(scores) != pytest.approx(1, abs=1e-3)


def test_a_network_without_the_option_block_gets_frames_only():
    """As networks that other projects register."""
    config = narrow("demo_video_none")
    for option in ("block", "block_at"):
        del config.model[option]
    outputs = predict_bytes(config, movies.video(20)).outputs
    assert outputs[".json"]["block"] is None
    assert "_attention.png" in outputs


def test_a_network_without_attention_gets_frames_only():
    (with_maps, without) = (
        predict_bytes(narrow(name), movies.video(20)).outputs
        for name in ("demo_video_dnl", "demo_video_gc")
    )
    assert with_maps[".json"]["block"] == "layer1.0"
    assert without[".json"]["block"] is None
    heights = [outputs["_attention.png"].shape[0] for outputs in (with_maps, without)]
    assert heights[0] > heights[1] + 160


def test_predict_refuses(command, checkpoint, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(movies.video(20))
    given = ("predict", *FLAGS, f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}")

    def message(*arguments):
        status, out, err = command(*given, *arguments)
        assert (status, out) == (2, "")
        return err

    assert "there are no videos; add at least one video" in message()
    assert "the position is (8, 0, 0); use" in message(clip, "--position=8,0,0")
    assert "the position is (0, 0); use" in message(clip, "--position=0,0")
    assert "use integers, such as" in message(clip, "--position=a,b,c")
    assert "--multi_scale (multi_scale) is only for images; leave it out" in message(
        clip, "--multi_scale"
    )
    assert "--max_megapixels (max_megapixels) is only for images; leave it out" in message(
        clip, "--max_megapixels=9"
    )
    assert "4 classes" in message(clip, "--config.data.name=digits_flag")
    image = "--config=configs/segmentation.py:demo_fcn"
    status, _, err = command("predict", image, *given[3:], clip, "--position=0,0,0")
    assert status == 2
    assert "--position (position) is only for videos; leave it out" in err
    assert not (tmp_path / "out").exists()
