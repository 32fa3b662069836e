"""Decoding in the engines that one would deploy with, beside this package's own."""

from __future__ import annotations

from replication.report.figures.deployment import built_models, canvas_of, records_of
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, listed
from replication.report.tables.deployments import ENGINES, bandwidths, engines_report, ordered


def draw(inputs: Inputs) -> Figure:
    """For each model: tokens a second by batch size, prefill and memory, in every engine.

    Raises:
        NotRun: where none was measured.
    """
    report = engines_report(inputs.results)
    if report is None:
        raise NotRun(f"there is no results/{ENGINES}: run make bench-engines")
    deployed, missing = {}, []
    for model, content in report["models"].items():
        variants = ordered(content["variants"])
        missing += [f"{part['label']} ({model})" for part in variants.values() if "not_run" in part]
        if ran := {name: part for name, part in variants.items() if "not_run" not in part}:
            deployed[model] = (report, ran)
    if not deployed:
        raise NotRun(f"no engine of results/{ENGINES} ran")
    best = bandwidths([report])
    settings = report["settings"]
    return inputs.figure(
        name="engines",
        title="Speed and memory in other engines",
        caption=(
            f"The decoders of {listed(list(deployed))} with random weights on {report['device']}, "
            f"in {settings['rounds']} rounds of turns. Above: decoded tokens a second at the batch "
            "size beside the point (logarithmic axis); bars are the least and greatest of the "
            "repeats, upright marks the memory-bandwidth floor. Below: time to read a prompt of "
            f"{settings['text_tokens']} words without an image, and peak memory of the process at "
            "batch 1, in which the full colour is the weights. Grey: 16 and 32 bits; red: this "
            "package; blue: other engines and libraries at 4 bits."
            + (f" Not run: {listed(missing)}." if missing else "")
        ),
        alt="Dot and bar charts of speed and memory. " + " ".join(
            f"{model}: at batch 1 " + ", ".join(
                f"{part['label']} decodes {part['decode']['1']['tokens_per_second']['median']:.1f}"
                for part in variants.values()
                if "not_run" not in part["decode"]["1"]
            ) + " tokens per second."
            for model, (_, variants) in deployed.items()
        ),
        n=f"{settings['rounds']} rounds, in each {settings['repeats']} prompts and "
        f"{settings['decode_repeats']} runs of tokens",
        units="tokens per second; seconds; GiB",
        sources=(f"results/{ENGINES}",),
        data=records_of(deployed, best),
        models=built_models(deployed),
        canvas=canvas_of(deployed, best),
    )  # fmt: skip
