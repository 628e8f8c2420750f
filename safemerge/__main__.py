"""``python -m safemerge``: the command line."""

import sys

from safemerge.cli import main

if __name__ == "__main__":
    sys.exit(main())
