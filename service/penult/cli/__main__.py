"""`python -m penult.cli`."""

import sys

from penult.cli import main

if __name__ == "__main__":
    sys.exit(main())
