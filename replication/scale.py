"""The pipeline at a scale; see :mod:`replication.settings.scales`."""

import sys

from replication.settings.scales import main

if __name__ == "__main__":
    sys.exit(main())
