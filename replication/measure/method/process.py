"""The process of one part: reads what to measure from its first argument, writes to its second."""

import json
import sys

from replication.base.files import write_json_atomic
from replication.measure.method.benchmark import measure

if __name__ == "__main__":
    write_json_atomic(sys.argv[2], measure(json.loads(sys.argv[1])))
