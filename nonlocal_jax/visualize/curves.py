"""The picture of a run: its loss and its mIoU."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOR = "#2a5d9f"


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over ``width`` neighbours, over fewer at the ends."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def _draw_loss(axes: Axes, steps: np.ndarray, loss: np.ndarray) -> None:
    # A fiftieth of the run is averaged: enough to see through the noise of single batches.
    smooth = _running_mean(loss, min(2 * (len(loss) // 100) + 1, len(loss)))
    axes.plot(steps, loss, color=_COLOR, alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color=_COLOR, linewidth=1.8)
    axes.set_title("training loss", loc="left")
    axes.set_ylim(bottom=0)


def _draw_miou(axes: Axes, steps: np.ndarray, miou: np.ndarray) -> None:
    axes.plot(steps, miou, color=_COLOR, linewidth=1.8, marker="o", markersize=4)
    axes.annotate(
        f"{miou[-1]:.1f}",
        (steps[-1], miou[-1]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
    )
    axes.set_title("validation mIoU, percent", loc="left")
    axes.set_ylim(0, 105)


def curves_png(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws the loss and, where the run was evaluated, the mIoU over the steps.

    Args:
      records: of ``metrics.jsonl``: each has ``step`` and some have ``loss`` or ``miou``.

    Returns:
      A PNG.
    """
    panels = {"loss": (_draw_loss, 1.0), "miou": (_draw_miou, 100.0)}
    panels = {key: panel for key, panel in panels.items() if any(key in r for r in records)}
    # Without pyplot: no global state, and never a window.
    last_step = max(record["step"] for record in records)
    figure = Figure(figsize=(5.2 * len(panels), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for column, (key, (draw, unit)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), column)
        points = [(record["step"], unit * record[key]) for record in records if key in record]
        draw(axes, *np.array(points).T)
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.04 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
