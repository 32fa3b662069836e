"""Stage ``gate_covariance``: does the gate lower the distillation loss (Theorem 3.1)?"""

from replication.base.provenance import device_description
from replication.measure.gate import METHOD, RUN, measure_gate
from replication.measure.records import write_record
from replication.settings.paths import Layout
from replication.settings.schema import Params
from replication.stages import stage


@stage
def main(params: Params, name: str) -> None:
    group, run = params.find_run(params.known_family(name), RUN)
    write_record(
        params,
        "gate_covariance",
        name,
        measure_gate(params, Layout(params), name),
        method=METHOD,
        seeds=run.seeds[:1],
        settings=["compare.resamples", "gate_covariance", "coefficients", f"runs.{group}"],
        device=device_description(),
    )


if __name__ == "__main__":
    main()
