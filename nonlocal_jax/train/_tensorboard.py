"""Scalars for TensorBoard, where tensorboardX is installed."""

from collections.abc import Callable, Mapping

from etils import epath


def scalar_writer(
    directory: epath.Path, step: int
) -> Callable[[int, Mapping[str, float]], None] | None:
    """Returns a function that writes the metrics of a step, or None without tensorboardX.

    Args:
      directory: Local directory of the event files.
      step: What is written after this step hides what earlier files have after it.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(directory), purge_step=step + 1)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write
