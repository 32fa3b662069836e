"""Stage ``report``: one self-contained page of everything that was measured at this scale."""

from replication.base.files import write_text_atomic
from replication.report.page import build
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params) -> None:
    results = Layout(params).results
    write_text_atomic(results / "report.html", build(results.parents[1], params.scale))


if __name__ == "__main__":
    main()
