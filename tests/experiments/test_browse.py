import cv2
import numpy as np

from configs import segmentation
from nonlocal_jax import data
from nonlocal_jax.tasks import get_task

CONFIG = "--config=configs/segmentation.py:demo_fcn"


def test_browse_draws_the_examples_of_the_first_step(command, tmp_path):
    flip = "--config.data.flip=0.5"
    status, out, err = command("browse", CONFIG, flip, f"--output={tmp_path / 'new'}", "--number=3")
    assert status == 0, err
    assert str(tmp_path / "new" / "examples.png") in out
    sheet = data.read_image(tmp_path / "new" / "examples.png")

    config = segmentation.get_config("demo_fcn")
    config.data.flip = 0.5
    task = get_task(config)
    batches = data.train_batches(
        task.open_source(config, "train"),
        lambda example, rng: task.prepare(example, config, rng),
        batch_size=config.data.batch_size,
        seed=config.seed,
    )
    for number, image in enumerate(next(batches)["image"][:4]):
        enlarged = image.repeat(4, 0).repeat(4, 1)
        distance = cv2.matchTemplate(sheet, enlarged, cv2.TM_SQDIFF_NORMED).min()
        assert (distance < 1e-4) == (number < 3)
        if number < 3:
            written = data.read_image(tmp_path / "new" / "images" / f"{number}.png")
            np.testing.assert_array_equal(written, image)
    assert len(list((tmp_path / "new" / "images").iterdir())) == 3


def test_browse_refuses(command, tmp_path):
    status, out, err = command("browse", CONFIG, f"--output={tmp_path}", "--number=0")
    assert (status, out) == (2, "")
    assert "--number" in err
    given = (CONFIG, f"--output={tmp_path}", "--config.data.name=cityscapes")
    status, _, err = command("browse", *given, f"--data_dir={tmp_path}")
    assert status == 2
    assert "cityscapes is not prepared" in err
    assert not list(tmp_path.iterdir())
