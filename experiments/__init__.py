"""Commands that parse flags and call the library."""

import os
import signal
import sys

# While a command starts. `cli.run` restores the handler.
if sys.argv[0] == "-m":
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # Importing JAX takes seconds, and Ctrl-C would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file that is opened would become stdin, stdout or stderr.
            os.open(os.devnull, os.O_RDWR)
