"""``python -m zo``: the commands of the project."""

import sys

from zo.cli import main

if __name__ == "__main__":
    sys.exit(main())
