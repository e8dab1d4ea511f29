"""`python -m polarmap`: the command line, for when the script `polarmap` is not on PATH."""

import sys

from polarmap.cli import main

sys.exit(main())
