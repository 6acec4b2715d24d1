"""`python -m rnn_xp` is `rnn-xp`."""

import sys

from rnn_xp.cli import main

sys.exit(main())
