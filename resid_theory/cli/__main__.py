"""python -m resid_theory.cli: the command line without an installed script."""

import os
import sys

from resid_theory.cli.app import main

if __name__ == "__main__":
    code = main()
    if "LOCAL_RANK" in os.environ:
        # Under torchrun: threads of gloo that outlive the interpreter abort it now and then.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
