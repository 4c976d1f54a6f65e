"""`python -m spectralmoe_jax`: the command line, where the `spectralmoe` script is not on the path."""

import sys

from spectralmoe_jax.cli.main import main

sys.exit(main())
