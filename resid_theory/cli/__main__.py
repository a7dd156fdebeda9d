"""python -m resid_theory.cli."""

import sys

from resid_theory.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
