"""Decoding in the engines that one would deploy with, beside this package's own."""

from __future__ import annotations

from matplotlib.figure import Figure as Canvas

from replication.report.figures import style
from replication.report.figures.deployment import (
    Deployed,
    batch_sizes,
    built_models,
    draw_bar,
    draw_first_token,
    draw_memory,
    records_of,
    row_names,
    steps,
)
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, built, counted, listed
from replication.report.tables.deployments import ENGINES, bandwidths, engines_report, ordered


def draw(inputs: Inputs) -> Figure:
    """For each model: tokens a second by batch size, prefill and memory, in every engine.

    Raises:
        NotRun: where none was measured.
    """
    report = engines_report(inputs.results)
    if report is None:
        raise NotRun(f"there is no results/{ENGINES}: run make bench-engines")
    deployed, missing = {}, ""
    for model, content in report["models"].items():
        variants = ordered(content["variants"])
        if left := [part["label"] for part in variants.values() if "not_run" in part]:
            missing += f" Not run on {built(model, report)}: {'; '.join(left)}."
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
            f"The decoders of {listed([built(model, report) for model in deployed])} with random "
            f"weights on {report['device']}, in {settings['rounds']} rounds of turns. Above: "
            "decoded tokens a second by batch size; thin lines are the least and greatest of the "
            "repeats, and there is no bar where memory has no room for the cache. Below: time to "
            f"read a prompt of {settings['text_tokens']} words without an image, and peak memory "
            "of the process at batch 1, in which the full colour is the weights (llama.cpp and "
            "vLLM hold the cache of the largest batch from the start). Grey: 16 and 32 bits; "
            f"orange: this package; blue: other engines and libraries at 4 bits.{missing}"
        ),
        alt="Bar charts of speed and memory. " + " ".join(
            f"{model}: at batch 1 " + ", ".join(
                f"{part['label']} decodes {part['decode']['1']['tokens_per_second']['median']:.1f}"
                for part in variants.values()
                if "not_run" not in part["decode"]["1"]
            ) + " tokens per second."
            for model, (_, variants) in deployed.items()
        ),
        n=f"{settings['rounds']} rounds, in each {counted([settings['repeats']], 'prompt')} and "
        f"{counted([settings['decode_repeats']], 'run')} of tokens",
        units="tokens per second; seconds; GiB",
        sources=(f"results/{ENGINES}",),
        data=records_of(deployed, best),
        models=built_models(deployed),
        canvas=_canvas(deployed),
    )  # fmt: skip


def _canvas(deployed: Deployed) -> Canvas:
    """For each model a row of panels, one a batch size, and below it the first token and memory."""
    heights = [0.2 * len(variants) + 0.8 for _, variants in deployed.values() for _ in range(2)]
    canvas = style.canvas(style.WIDTH, sum(heights))
    rows = iter(canvas.add_gridspec(len(heights), 1, height_ratios=heights))
    for model, (report, variants) in deployed.items():
        batches = batch_sizes(variants)
        places = next(rows).subgridspec(1, len(batches))
        panels = [canvas.add_subplot(places[0, place]) for place in range(len(batches))]
        for axes, batch in zip(panels, batches, strict=True):
            for row, (name, part) in enumerate(variants.items()):
                if step := dict(steps(part)).get(batch):
                    draw_bar(axes, row, name, step["tokens_per_second"])
            row_names(axes, variants, shown=axes is panels[0])
            axes.set_xlabel(f"batch {batch}\ntokens/s")
        style.heading(panels[0], built(model, report))
        halves = next(rows).subgridspec(1, 2)
        draw_first_token(canvas.add_subplot(halves[0, 0]), variants)
        draw_memory(canvas.add_subplot(halves[0, 1]), variants)
    return canvas
