"""What this machine lacks, and what every table costs; see :mod:`replication.plan.machine`."""

import sys

from replication.plan.machine import main

if __name__ == "__main__":
    sys.exit(main())
