"""Scalars for TensorBoard, where tensorboardX is installed."""

from collections.abc import Mapping

from etils import epath


class Scalars:
    """Writes metrics for TensorBoard, or nothing without tensorboardX.

    Args:
      directory: Local directory of the event files.
      step: What earlier files have after this step is hidden.
    """

    def __init__(self, directory: epath.Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(directory), flush_secs=10, purge_step=step + 1)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step, within seconds."""
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what was added, and closes the file."""
        if self._writer is not None:
            self._writer.close()
