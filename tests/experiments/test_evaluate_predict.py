"""The commands evaluate and predict."""

import json

import cv2
import jax
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.data import images
from nonlocal_jax.data.datasets import _records
from tests.helpers import random_variables

CONFIG = "--config=configs/segmentation.py:demo_fcn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The demo's network with random variables."""
    config = segmentation.get_config("demo_fcn").model
    path = tmp_path_factory.mktemp("checkpoint") / "demo.safetensors"
    nlj.convert.save(path, random_variables(config), config)
    return path


def refused(result, *messages):
    """Exit status 2, and one error on stderr that contains all messages."""
    status, out, err = result
    assert status == 2, err
    assert out == ""
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    for message in messages:
        assert message in err
    return True


def write_image(path, height, width, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def read(path):
    """The values of a picture: a map of class indices keeps them."""
    return np.asarray(PIL.Image.open(path))


def predict(config, checkpoint, path, multi_scale=False):
    """The label map of an image file, without the command."""
    predictor = nlj.evaluation.Predictor(config, multi_scale=multi_scale)
    variables = nlj.convert.load(checkpoint, config.model)
    return predictor.label_maps(variables)(nlj.data.read_image(path, upright=True))


def test_evaluate_prints_a_table_and_writes_the_metrics(command, checkpoint, tmp_path):
    output = tmp_path / "new" / "directory"
    status, out, err = command(
        "evaluate", CONFIG, f"--checkpoint={checkpoint}", f"--output={output}"
    )
    assert status == 0, err
    compiling, *_, last = err.splitlines()
    assert compiling.startswith("compiling the network, for a few sizes of images; ")
    assert last.startswith("evaluating: image 256 of 256, ")
    assert last.endswith(" per second, 0 s left")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["experiment"] == "demo_fcn"
    assert (metrics["checkpoint"], metrics["step"]) == (str(checkpoint), None)
    assert out.endswith(f"\nwrote {output / 'metrics.json'}\n")
    assert (metrics["dataset"], metrics["split"], metrics["images"]) == ("digits_flag", "val", 256)
    assert metrics["protocol"]["ratios"] == [1.0]
    assert metrics["protocol"]["flip"] is False
    names = nlj.data.get_dataset("digits_flag").classes
    assert [row["name"] for row in metrics["classes"]] == list(names)
    ious = [row["iou"] for row in metrics["classes"] if row["iou"] is not None]
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    for name in names:
        assert f"| {name} " in out
    assert f"{100 * metrics['miou']:.2f}" in out
    assert [p.name for p in output.iterdir()] == ["metrics.json"]
    _, out, _ = command("table", tmp_path)
    value = f"{100 * metrics['miou']:.2f}"
    assert f"| demo_fcn | whole, 1 scale | mIoU | {value} | - | - | 1 (?) | - |" in out


@pytest.mark.parametrize(
    ("changes", "warns"), [([], True), (["published.miou_ms_flip=79.9"], False)]
)
def test_multi_scale_warns_if_the_protocol_has_one_scale(
    command, checkpoint, tmp_path, monkeypatch, changes, warns
):
    monkeypatch.setattr(_records.RecordSource, "__len__", lambda _: 1)
    config = tmp_path / "config.py"
    config.write_text(
        "from configs import segmentation\n"
        "def get_config():\n"
        "    config = segmentation.get_config('demo_fcn')\n"
        + "".join(f"    config.{change}\n" for change in changes)
        + "    return config\n"
    )
    given = [f"--config={config}", f"--checkpoint={checkpoint}", f"--output={tmp_path}"]
    small = "--config.evaluation.ratios=(1.0,)"
    status, _, err = command("evaluate", *given, small, "--multi_scale")
    assert status == 0, err
    warning = "warning: the protocol of demo_fcn has one scale and no flip; leave out --multi_scale"
    assert (warning in err) == warns
    assert warning not in command("evaluate", *given, small)[2]


def test_evaluate_refuses(command, checkpoint, tmp_path):
    given = [CONFIG, f"--checkpoint={checkpoint}", f"--output={tmp_path}"]
    missing = tmp_path / "nowhere.safetensors"
    assert refused(command("evaluate", *given, f"--checkpoint={missing}"), str(missing))
    other = "--config=configs/segmentation.py:demo_dnl"
    assert refused(command("evaluate", *given, other), str(checkpoint), "block")
    assert refused(command("evaluate", *given, "--split=tests"), "tests")
    assert refused(command("evaluate", *given, "--config.data.name=digits_fla"), "digits_flag")
    wrong_classes = command("evaluate", *given, "--config.model.num_classes=19")
    assert refused(wrong_classes, "digits_flag has 3; use --config.model.num_classes=3")
    assert refused(command("evaluate", *given, "--config.evaluation.mode=slid"), "evaluation.mode")
    assert refused(command("evaluate", CONFIG, f"--output={tmp_path}"), "checkpoint")
    assert refused(command("evaluate", *given[1:]), "config")
    file = write_image(tmp_path / "file.png", 4, 4)
    assert refused(command("evaluate", *given, f"--output={file / 'x'}"), "cannot write to", "x")
    assert not (tmp_path / "metrics.json").exists()


def test_predict_writes_label_maps_and_overlays_of_the_size_of_the_images(
    command, checkpoint, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = {"a.png": (64, 64), "b.jpg": (37, 90), "c.JPEG": (90, 37)}
    for seed, (name, size) in enumerate(sizes.items()):
        write_image(folder / name, *size, seed)
    (folder / "notes.txt").write_text("no image")
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.open(folder / "c.JPEG").save(folder / "c.JPEG", exif=exif)
    single = tmp_path / "gray.png"
    assert cv2.imwrite(str(single), np.full((50, 50), 90, np.uint8))

    output = tmp_path / "out"
    status, out, err = command(
        "predict", CONFIG, f"--checkpoint={checkpoint}", f"--output={output}", folder, single
    )
    assert status == 0, err
    assert "compiling the network; " in err.partition("predicting: image 4 of 4")[0]
    assert out == f"wrote NAME_labels.png and NAME_overlay.png of 4 images to {output}\n"
    assert len(list(output.iterdir())) == 8
    config = segmentation.get_config("demo_fcn")
    sizes["c.JPEG"] = 37, 90  # upright
    for name, size in {**sizes, "gray.png": (50, 50)}.items():
        path = single if name == "gray.png" else folder / name
        labels = read(output / f"{path.stem}_labels.png")
        assert labels.shape == size
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, predict(config, checkpoint, path))
        data = (output / f"{path.stem}_labels.png").read_bytes()
        np.testing.assert_array_equal(images.decode_label(data, "the label map"), labels)
        palette = np.array(nlj.data.get_dataset("digits_flag").palette, np.uint8)
        np.testing.assert_array_equal(images.decode_image(data, "its colors"), palette[labels])
        overlay = read(output / f"{path.stem}_overlay.png")
        factor = 512 // max(size)  # small images are enlarged
        assert overlay.shape[0] > factor * size[0]  # the legend
        assert overlay.shape[1] >= factor * size[1]


def test_predict_with_multiple_scales_and_the_same_file_twice(command, checkpoint, tmp_path):
    image = write_image(tmp_path / "a.png", 32, 48)
    output = tmp_path / "out"
    status, _, err = command(
        *("predict", CONFIG, f"--checkpoint={checkpoint}", f"--output={output}", image, image),
        *("--multi_scale", "--config.evaluation.ratios=(0.5, 1.0)"),
    )
    assert status == 0, err
    assert "predicting: image 1 of 1" in err
    config = segmentation.get_config("demo_fcn")
    config.evaluation.ratios = (0.5, 1.0)
    labels = predict(config, checkpoint, image, multi_scale=True)
    assert (labels != predict(config, checkpoint, image)).any()
    np.testing.assert_array_equal(read(output / "a_labels.png"), labels)


def test_predict_segments_the_good_images_and_names_all_bad_ones(
    command, checkpoint, tmp_path, monkeypatch
):
    whole = write_image(tmp_path / "whole.png", 64, 64).read_bytes()
    (tmp_path / "b_cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c_empty.jpg").write_bytes(b"")
    errors = {}
    for number, error in enumerate(
        (
            MemoryError("Unable to allocate 3.26 TiB"),
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."),
            cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed"),
        )
    ):
        write_image(tmp_path / f"d_{number}.png", 16, 16 + number)
        errors[16 + number] = error
    label_maps = nlj.evaluation.Predictor.label_maps

    def failing_label_maps(self, variables):
        label_map = label_maps(self, variables)

        def run(image):
            if error := errors.get(image.shape[1]):
                raise error
            return label_map(image)

        return run

    monkeypatch.setattr(nlj.evaluation.Predictor, "label_maps", failing_label_maps)
    output = tmp_path / "out"
    given = f"--checkpoint={checkpoint}", f"--output={output}", "--max_megapixels=0.005"
    write_image(tmp_path / "large.jpg", 100, 100)
    status, out, err = command("predict", CONFIG, *given, tmp_path)
    assert (status, err.count("error: ")) == (2, 1)
    assert out == f"wrote NAME_labels.png and NAME_overlay.png of 1 image to {output}\n"
    lines = err.partition("error: ")[2].splitlines()
    assert lines[0] == "cannot predict 6 of 7 images:"
    for line, name, reason in zip(
        lines[1:],
        ("b_cut.png", "c_empty.jpg", "d_0.png", "d_1.png", "d_2.png", "large.jpg"),
        ("not a complete", "not a PNG", *3 * ["more memory than there is"], "limit of 0.005 mega"),
        strict=False,
    ):
        assert name in line
        assert reason in line
    assert sorted(p.name for p in output.iterdir()) == ["whole_labels.png", "whole_overlay.png"]


def test_predict_never_mixes_inputs_and_outputs(command, checkpoint, tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, 8, 8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = ["predict", CONFIG, f"--checkpoint={checkpoint}"]
    beside = f"--output={tmp_path}"
    assert refused(command(*given, beside, tmp_path), "also a directory of images", "predicted")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # Beside its input, an image may be segmented any number of times.
    for _ in range(2):
        assert command(*given, beside, tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes() == before["a.png"]
    files = sorted(tmp_path.iterdir())
    assert refused(command(*given, beside, *files), "a_labels.png would replace an input")
    other = command(*given, f"--output={tmp_path / 'out'}", tmp_path)
    assert refused(other, "a_labels.png is an output of an earlier run", "a_overlay.png is an")
    assert not (tmp_path / "out").exists()


def test_outputs_of_files_with_one_stem_keep_the_suffix(command, checkpoint, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for seed, name in enumerate(("a.jpg", "a.png", "b.png")):
        write_image(folder / name, 16, 16, seed)
    status, _, err = command(
        "predict", CONFIG, f"--checkpoint={checkpoint}", f"--output={output}", folder
    )
    assert status == 0, err
    assert sorted(path.name for path in output.iterdir()) == [
        f"{name}_{kind}.png" for name in ("a.jpg", "a.png", "b") for kind in ("labels", "overlay")
    ]


def test_predict_refuses(command, checkpoint, tmp_path):
    given = ["predict", CONFIG, f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}"]
    image = write_image(tmp_path / "a.png", 8, 8)
    for folder in ("one", "two", "empty"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "one" / "a.png", 8, 8)
    write_image(tmp_path / "two" / "a.png", 8, 8)
    assert refused(command(*given), "at least one image")
    assert refused(command(*given, tmp_path / "empty"), "empty")
    assert refused(command(*given, tmp_path / "b.png"), "b.png")
    same = command(*given, tmp_path / "one", tmp_path / "two")
    assert refused(same, "one/a.png and", "two/a.png", "same outputs")
    assert refused(command(*given, "--config.data.name=voc12aug", image), "3 classes", "21")
    assert refused(command(*given, f"--output={image}", image), "a.png is a file; use a directory")
    assert not (tmp_path / "out").exists()
    assert refused(command(*given, f"--checkpoint={tmp_path / 'no'}", image), str(tmp_path / "no"))
