"""Run the command line as `python -m polarmap`, if the script `polarmap` is not on PATH."""

import sys

from polarmap.cli import main

sys.exit(main())
