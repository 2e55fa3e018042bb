"""``python -m mmlib``."""

import signal

# While the libraries are loaded nothing has begun: Ctrl-C then ends the process at once.
interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)

from .cli import main  # noqa: E402

signal.signal(signal.SIGINT, interrupted)
main()
