"""Speed and memory of the method's own parts, each beside the straightforward way to compute it.

One module for each part, at the published widths, with random values:

    fake_quantization     a training step of a decoder layer, fake-quantized and plain
    scale_search          the start of the scales
    gated_distillation    GDKD over a large vocabulary
    projection            the vocabulary projection of supervised positions, and of all
    relational            RCKA as visual tokens grow
    loading               samples of photos and conversations, as batches

`straightforward` holds what they are compared with, `compare` how. `python -m replication.bench
method` runs all of them and writes results/performance/performance.json.
"""

OURS = "grace"
"""Of several ways to do one thing, the one that the package computes."""
