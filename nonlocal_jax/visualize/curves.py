"""Plots the curves of a training run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOR = "#2a5d9f"


def curves_png(records: Sequence[Mapping[str, Any]], headline: str) -> bytes:
    """Plots the training loss and the validation metric, if there is one, over the steps.

    Args:
      records: Records of ``metrics.jsonl``. Each has a "step", and some have "train/loss" or the
        validation metric.
      headline: Name of the validation metric without its prefix, such as "miou". The metric is a
        fraction and is plotted in percent.

    Returns:
      The bytes of a PNG file.
    """
    metric = f"val/{headline}"
    panels = {"train/loss": ("train/loss", _draw_loss), metric: (f"{metric} (%)", _draw_metric)}
    panels = {key: panel for key, panel in panels.items() if any(key in r for r in records)}
    last_step = max(record["step"] for record in records)
    # Without pyplot there is no global state and never a window.
    figure = Figure(figsize=(5.2 * len(panels), 3.6), dpi=120, layout="constrained")
    for column, (key, (title, draw)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), column)
        points = [(record["step"], record[key]) for record in records if key in record]
        draw(axes, *np.array(points).T)
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.04 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _draw_loss(axes: Axes, steps: np.ndarray, loss: np.ndarray) -> None:
    # A running mean over a fiftieth of the run shows the trend behind the noise of the batches.
    smooth = _running_mean(loss, min(2 * (len(loss) // 100) + 1, len(loss)))
    # A line through few points is hard to see, and through one invisible.
    marker = "o" if len(loss) < 10 else None
    axes.plot(steps, loss, color=_COLOR, alpha=0.3, linewidth=1, marker=marker, markersize=4)
    axes.plot(steps, smooth, color=_COLOR, linewidth=1.8)
    axes.set_ylim(0, 1.05 * np.max(loss, initial=0, where=np.isfinite(loss)) or 1)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean over ``width`` neighbors, or over fewer at the ends."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def _draw_metric(axes: Axes, steps: np.ndarray, fractions: np.ndarray) -> None:
    percent = 100 * fractions
    axes.plot(steps, percent, color=_COLOR, linewidth=1.8, marker="o", markersize=4)
    axes.annotate(
        f"{percent[-1]:.1f}",
        (steps[-1], percent[-1]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
    )
    axes.set_ylim(0, 105)
