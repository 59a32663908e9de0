import cv2
import numpy as np
import pytest

from nonlocal_jax.visualize import curves_png


@pytest.mark.parametrize("headline", ["miou", "top1"])
@pytest.mark.parametrize("evaluated", [False, True])
def test_the_loss_and_the_headline_metric_have_a_panel_each(headline, evaluated):
    records = [{"step": step, "train/loss": 1 / step} for step in range(1, 300)]
    if evaluated:
        records += [{"step": step, f"val/{headline}": step / 300} for step in (100, 200, 300)]
    image = cv2.imdecode(np.frombuffer(curves_png(records, headline), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] > image.shape[0] * (2 if evaluated else 1)
    assert np.unique(image.reshape(-1, 3), axis=0).shape[0] > 20
