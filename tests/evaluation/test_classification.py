"""Scores of videos, and the metrics of classification."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nonlocal_jax as nlj
from nonlocal_jax.configs._video import classification_config
from nonlocal_jax.data import Dataset
from nonlocal_jax.data.videos import FrameArray
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import VideoPredictor, average_precision, videos
from nonlocal_jax.evaluation.classification import evaluator, report
from nonlocal_jax.sharding import Shardings, make_mesh


class Backbone(nn.Module):
    """One convolution over space."""

    @nn.compact
    def __call__(self, x, train):
        return [nn.relu(nn.Conv(4, (3, 3), strides=8)(x))]


class Brightness:
    """A model whose logits are the gray levels at fixed pixels of the first frame."""

    def apply(self, variables, clips):
        return clips[:, 0, 0, : self.classes, 0] * variables["scale"]


@pytest.fixture
def config():
    config = classification_config(
        "tiny",
        dataset="own",
        num_classes=3,
        block="none",
        steps=4,
        learning_rate=0.1,
        weight_decay=0.0,
    )
    config.data.update(frames=2, interval=1, mean=(0, 0, 0), std=(1, 1, 1))
    config.evaluation.update(clips=1, crops=1, starts="even", short_side=16, crop=16)
    return config


@pytest.fixture
def brightness(monkeypatch):
    def create(options):
        model = Brightness()
        model.classes = options.num_classes
        return model

    monkeypatch.setattr(videos, "create_model", create)


def example(name, label, *levels):
    """A video of one frame with these gray levels in its first row."""
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    frames[0, 0, : len(levels)] = np.array(levels, np.uint8)[:, None]
    return {"video": FrameArray(frames), "label": label, "id": name}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "average", "window"),
    [
        ("softmax", "probabilities", (0, 2, 1)),
        ("softmax", "logits", (1, 0, 2)),
        ("sigmoid", "probabilities", (2, 2, 2)),
        ("softmax", "probabilities", ()),
    ],
)
def test_scores_of_30_views_equal_a_loop_over_views_and_windows(
    config, monkeypatch, kind, average, window
):
    """Three videos of different lengths on eight devices: they share batches of 32 views."""
    model = nlj.models.VideoNet(Backbone(), num_classes=3)
    monkeypatch.setattr(videos, "create_model", lambda _: model)
    config.data.update(frames=4, mean=(100, 110, 120), std=(50, 60, 70))
    config.loss.kind = kind
    config.evaluation.update(
        clips=10, crops=3, starts="wrap", short_side=24, crop=24, window=window, average=average
    )
    rng = np.random.default_rng(0)
    given = [
        FrameArray(rng.integers(0, 256, (frames, 24, 40, 3), np.uint8)) for frames in (3, 7, 30)
    ]
    variables = model.init(jax.random.key(0), np.zeros((1, 4, 24, 24, 3), np.float32))
    variables["params"]["classifier"]["kernel"] *= 100  # scores far from each other
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    views = [nlj.data.read_views(video, config) for video in given]
    scores = list(VideoPredictor(config)(variables)(views))

    kernel, bias = (variables["params"]["classifier"][name] for name in ("kernel", "bias"))
    backbone = jax.jit(lambda clip: model.bind(variables).backbone(clip, False)[-1])
    assert len(scores) == 3
    for of_video, actual in zip(views, scores, strict=True):
        assert of_video.shape == (30, 4, 24, 24, 3)
        expected = []
        for view in of_video:
            x = np.asarray(backbone((view[None] - [100, 110, 120]) / [50.0, 60.0, 70.0]))[0]
            sizes = [n or m for n, m in zip(window or (0, 0, 0), x.shape[:3], strict=True)]
            starts = np.ndindex(*(m - n + 1 for n, m in zip(sizes, x.shape[:3], strict=True)))
            in_view = []
            for start in starts:
                part = x[tuple(slice(i, i + n) for i, n in zip(start, sizes, strict=True))]
                z = part.mean((0, 1, 2)) @ kernel + bias
                if average == "probabilities":
                    z = np.exp(z) / np.exp(z).sum() if kind == "softmax" else 1 / (1 + np.exp(-z))
                in_view.append(z)
            assert (len(in_view) > 1) == bool(window)
            expected.append(np.mean(in_view, axis=0))
        assert np.ptp(actual) > 1e-3
        np.testing.assert_allclose(actual, np.mean(expected, axis=0), rtol=0, atol=1e-12)


def plain_average_precision(scores, labels):
    """The formula, class by class and rank by rank."""
    result = []
    for c in range(scores.shape[1]):
        ranked = [(-np.inf if not labels[v].any() else scores[v, c], v) for v in range(len(scores))]
        ranked.sort(key=lambda pair: (-pair[0], pair[1]))
        hits, total = 0, 0.0
        for rank, (_, v) in enumerate(ranked, 1):
            if labels[v, c]:
                hits += 1
                total += hits / rank
        result.append(total / hits if hits else np.nan)
    return result


@settings(deadline=None)
@given(st.data())
def test_average_precision_is_its_definition_with_ties_and_empty_rows(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 4)))
    draw = lambda values: np.array(  # noqa: E731
        data.draw(
            st.lists(
                st.lists(values, min_size=shape[1], max_size=shape[1]),
                min_size=shape[0],
                max_size=shape[0],
            )
        )
    )
    scores, labels = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])), draw(st.sampled_from([0, 0, 1]))
    np.testing.assert_allclose(
        average_precision(scores, labels), plain_average_precision(scores, labels), rtol=1e-12
    )


def test_a_video_without_labels_ranks_last():
    scores, labels = np.array([[0.9], [0.5], [0.1]]), np.array([[0], [1], [0]])
    np.testing.assert_array_equal(average_precision(scores, labels), [1])


@pytest.mark.usefixtures("brightness")
def test_accuracies(config):
    config.model.num_classes = 8
    config.evaluation.average = "logits"
    source = [
        example("right", 0, 9, 8, 7, 6, 5, 4, 3, 2),
        example("fifth", 4, 9, 8, 7, 6, 5, 4, 3, 2),
        example("sixth", 5, 9, 8, 7, 6, 5, 4, 3, 2),
        example("right of two equal ones", 0, 1, 1),
        example("wrong of two equal ones", 1, 1, 1),
        example("second class", 1, 0, 5),
    ]
    summary = evaluator(config, source)({"scale": jnp.float32(1)})
    assert summary["top1"] == pytest.approx(3 / 6)
    assert summary["top5"] == pytest.approx(5 / 6)
    # Classes 0, 1, 4 and 5 occur.
    assert summary["mean_class_accuracy"] == pytest.approx((1 + 1 / 2) / 4)

    table, values = report(summary)
    assert table.splitlines()[:5] == [
        "| 1clip               |      % |",
        "|---------------------|-------:|",
        "| top-1               |  50.00 |",
        "| top-5               |  83.33 |",
        "| mean class accuracy |  37.50 |",
    ]
    assert "1 clip (2 frames in a row, starts: even) x 1 crop of 16x16 pixels" in table
    values = json.loads(json.dumps(values, allow_nan=False))
    assert values["protocol"]["name"] == "1clip"
    assert values["protocol"]["window"] == []
    assert (values["videos"], values["dataset"]) == (6, "own")
    assert values["classes"][1:3] == [
        {"name": "1", "accuracy": 0.5},
        {"name": "2", "accuracy": None},
    ]


@pytest.mark.usefixtures("brightness")
def test_map_and_the_names_of_the_classes(config):
    class Source(list):
        dataset = Dataset("actions", ("sit", "stand", "run"), ((0, 0, 0),) * 3)

    config.loss.kind = "sigmoid"
    source = Source(
        [
            example("a", (0, 1), 9, 2),
            example("b", 1, 5, 1),
            example("empty", (), 7, 3),
            example("c", (0,), 3, 0),
        ]
    )
    summary = evaluator(config, source)({"scale": jnp.float32(0.1)})
    np.testing.assert_allclose(summary["average_precision"], [(1 + 2 / 3) / 2, 1, np.nan])
    assert summary["map"] == pytest.approx((5 / 6 + 1) / 2)
    table, values = report(summary)
    assert table.startswith("| 1clip |      % |\n|-------|-------:|\n| mAP   |  91.67 |\n")
    assert values["classes"][2] == {"name": "run", "average_precision": None}
    with pytest.raises(InputError, match="no video has a label"):
        evaluator(config, source[2:3])({"scale": jnp.float32(1)})


@pytest.mark.parametrize("starts", ["wrap", "even", "segments"])
def test_the_evaluation_during_training_is_one_central_view(config, brightness, starts):
    """The video is bright where its central frame and its central crop are."""
    config.evaluation.update(clips=1 if starts == "segments" else 10, crops=3, starts=starts)
    config.data.frames = 1
    frames = np.zeros((9, 16, 32, 3), np.uint8)
    frames[4, 0, 8 + 1] = 255
    source = [{"video": FrameArray(frames), "label": 1, "id": "a"}]
    evaluate = evaluator(config, source, quick=True)
    summary = evaluate({"scale": jnp.float32(1)})
    assert summary["protocol"]["name"] == "1clip"
    assert {k: v for k, v in summary.items() if isinstance(v, float)} == {
        "top1_1clip": 1.0,
        "mean_class_accuracy_1clip": 1.0,
    }
    assert "| top-1 " in report(summary)[0]
    assert config.evaluation.crops == 3


@pytest.mark.parametrize(
    ("clips", "crops", "name"), [(10, 3, "10x3"), (1, 10, "10crop"), (1, 1, "1clip"), (5, 1, "5x1")]
)
def test_every_number_has_its_protocol(config, clips, crops, name):
    config.evaluation.update(clips=clips, crops=crops, window=(0, 7, 7), average="logits")
    protocol = videos.protocol(config)
    assert protocol["name"] == name
    assert protocol["description"].endswith(
        "over windows of all x 7 x 7 (frames x rows x columns); mean of the logits"
    )
    assert {"starts", "short_side", "frames", "interval", "mean", "std"} <= set(protocol)


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize("context", [1, 2])
def test_devices_give_the_scores_of_one(config, context):
    source = [example(i, i % 3, 7 * i % 5, i % 4, 3) for i in range(5)]
    config.mesh.context = context
    variables = {"scale": jnp.float32(0.3)}
    views = [nlj.data.read_views(item["video"], config) for item in source]
    expected = VideoPredictor(config, shardings=Shardings(make_mesh(jax.devices()[:1])))
    actual = list(VideoPredictor(config)(variables)(iter(views)))
    np.testing.assert_allclose(actual, list(expected(variables)(views)), rtol=1e-6)


@pytest.mark.usefixtures("brightness")
def test_mistakes_are_refused(config):
    with pytest.raises(InputError, match=r"\(multi_scale\) is only for images; leave it out"):
        evaluator(config, [], multi_scale=True)
    with pytest.raises(InputError, match=r"shardings is of type Mesh; use .*Shardings"):
        evaluator(config, [], shardings=make_mesh())
    with pytest.raises(InputError, match="has no examples"):
        evaluator(config, [])({})
    with pytest.raises(InputError, match="example 'a' are 3; use the class indices 0 to 2"):
        evaluator(config, [example("a", 3, 1)])({"scale": jnp.float32(1)})
