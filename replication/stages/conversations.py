"""Stage ``conversations``: the published training conversations, checked and converted once."""

from replication.base import provenance
from replication.base.files import write_json_atomic
from replication.settings.paths import Layout
from replication.settings.schema import Params, section
from replication.stages import stage


@stage
def main(params: Params) -> None:
    # not at the top: the processes that decode images load this module again
    from replication.data.conversations.annotations import find_annotations
    from replication.data.conversations.convert import Images, Limits, convert

    settings = section(params.data, "data").training
    layout = Layout(params)
    sources = [
        find_annotations(name, settings.repository, settings.revision) for name in settings.files
    ]
    index = convert(
        sources,
        Images(settings.images, settings.folders),
        layout.published,
        samples=settings.samples,
        seed=settings.seed,
        limits=Limits(settings.invalid_records, settings.missing_images),
    )
    result = {name: index[name] for name in ("format", "sources", "selection", "counts")}
    result["provenance"] = provenance.collect(
        params.subset("data.training"),
        [settings.seed],
        "python -m replication.stages.conversations",
    )
    write_json_atomic(layout.results / "conversations.json", result)


if __name__ == "__main__":
    main()
