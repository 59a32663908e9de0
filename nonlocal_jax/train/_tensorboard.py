"""Scalars for TensorBoard, where tensorboardX is installed."""

import contextlib
import socket
import time
from collections.abc import Mapping

from etils import epath

from nonlocal_jax._files import make_directory, writing


class Scalars:
    """Writes metrics for TensorBoard, or nothing without tensorboardX.

    This does not use ``SummaryWriter``. It writes in a thread, and after an error of that thread,
    such as on a full disk, its methods block forever.

    Args:
      directory: Local directory of the event files.
      step: What earlier files have after this step is hidden.

    Raises:
      InputError: The file cannot be written.
    """

    def __init__(self, directory: epath.Path, step: int):
        try:
            from tensorboardX.proto.event_pb2 import SessionLog
            from tensorboardX.record_writer import RecordWriter
        except ImportError:
            self._writer = None
            return
        # TensorBoard reads files with such a name.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._path = make_directory(directory) / name
        with writing(self._path):
            self._writer = RecordWriter(str(self._path))
        self._write(0, file_version="brain.Event:2")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step.

        Raises:
          InputError: The file cannot be written.
        """
        if self._writer is not None:
            from tensorboardX.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
            self._write(step, summary=Summary(value=values))

    def _write(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(step=step, wall_time=time.time(), **content)
        with writing(self._path):
            self._writer.write(event.SerializeToString())
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            # What could not be written has been reported.
            with contextlib.suppress(OSError):
                self._writer.close()
