"""What the paper reports, as data: tables.yaml (numbers) and claims.yaml (the claim ledger).

`load_tables` and `load_ledger` validate everything; a wrong or unknown entry is an InputError that
names the place and, for a misspelt key, the nearest valid one. tables.yaml also lists the rows and
tables of our own, so that one place says what a table holds.
"""

from grace.files import read_yaml
from replication.paper.ledger import (
    CONSISTENCY_CHECKS,
    Claim,
    Expectation,
    Explanation,
    Ledger,
    Part,
    load_ledger,
    parse_ledger,
)
from replication.paper.tables import (
    AVERAGE,
    COMPONENTS,
    CONTROL,
    FOLDER,
    Discrepancy,
    Mismatch,
    OwnRow,
    Reported,
    ReportedRow,
    ReportedTable,
    Statement,
    Summary,
    load_tables,
    parse_tables,
)

__all__ = [
    "AVERAGE",
    "COMPONENTS",
    "CONSISTENCY_CHECKS",
    "CONTROL",
    "FOLDER",
    "Claim",
    "Discrepancy",
    "Expectation",
    "Explanation",
    "Ledger",
    "Mismatch",
    "OwnRow",
    "Part",
    "Reported",
    "ReportedRow",
    "ReportedTable",
    "Statement",
    "Summary",
    "load_ledger",
    "load_tables",
    "parse_ledger",
    "parse_tables",
    "read_yaml",
]
