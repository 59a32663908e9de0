"""The signals that stop a run."""

import signal

# Windows has no SIGHUP.
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)}
