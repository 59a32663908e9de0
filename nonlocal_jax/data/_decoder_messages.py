"""Collects what the decoders of images print on stderr."""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

# The messages of libpng, of libjpeg and of OpenCV.
_MESSAGE = re.compile(
    rb"libpng (?:warning|error): |Corrupt JPEG data: |Premature end of JPEG file|"
    rb"Inconsistent progression sequence |Invalid SOS parameters |Unknown Adobe color transform |"
    rb"Warning: unknown JFIF revision |Application transferred too |\[ ?(?:WARN|ERROR):"
)
_LOCK = threading.Lock()


@contextlib.contextmanager
def decoder_messages() -> Iterator[list[str]]:
    """Collects the lines that decoders print while the block runs.

    The decoders write to the file descriptor of stderr and name no file. So they must run one at a
    time here. What others print meanwhile appears when the block ends.

    Yields:
      A list. It is filled when the block ends.
    """
    messages: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file:
                if _MESSAGE.match(line):
                    messages.append(
                        line.decode("latin-1").strip().encode("unicode_escape").decode()
                    )
                else:
                    os.write(2, line)
