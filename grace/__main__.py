"""`python -m grace`, and `accelerate launch -m grace`: the command `grace`."""

import sys

from grace.cli import main

if __name__ == "__main__":
    sys.exit(main())
