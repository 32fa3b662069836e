"""Stage ``report``: one self-contained page of everything that was measured at this scale."""

from replication.io import write_text_atomic
from replication.layout import Layout
from replication.params import Params
from replication.report.page import build
from replication.stages import stage


@stage
def main(params: Params) -> None:
    results = Layout(params).results
    write_text_atomic(results / "report.html", build(results.parents[1], params.scale))


if __name__ == "__main__":
    main()
