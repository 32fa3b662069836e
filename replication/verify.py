"""What was measured against what was reported; see :mod:`replication.judge.ledger`."""

import sys

from replication.judge.ledger import main

if __name__ == "__main__":
    sys.exit(main())
