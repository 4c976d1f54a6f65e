"""`python -m spectralmoe_jax`: the command line, where the `spectralmoe` script is not on the path."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until the command line has its own

from spectralmoe_jax.cli.main import main

sys.exit(main())
