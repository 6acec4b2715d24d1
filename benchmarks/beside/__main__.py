"""`python -m benchmarks.beside`."""

import sys

from .command import main

sys.exit(main())
