"""Stage ``entropy_error``: does the teacher's entropy predict its error (Figure 2)?"""

from grace.models import check_model_directory
from replication.base.provenance import device_description
from replication.evaluate.jobs import questions_of
from replication.measure.entropy import BENCHMARK, METHOD, measure_entropy
from replication.measure.records import write_record
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    layout = Layout(params)
    teacher = layout.model(name, "teacher")
    check_model_directory(teacher)
    questions = questions_of(params, [BENCHMARK], name)
    write_record(
        params,
        "entropy_error",
        name,
        measure_entropy(params, name, teacher, questions),
        method=METHOD,
        seeds=[params.entropy_error.seed],
        settings=[
            *("compare.resamples", "data.benchmarks", "entropy_error"),
            *("evaluate.batch_size", "evaluate.dtype", "evaluate.max_new_tokens"),
        ],
        device=device_description(),
    )


if __name__ == "__main__":
    main()
