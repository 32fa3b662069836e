"""The checkpoints that the authors released, evaluated and compared with what they report.

    make verify-released
    python -m replication.released --models qwen3-vl-2b-w4g128 --mirror /data/hub

`checkpoints` says which there are and loads the list, `evaluation` runs the benchmarks of the table
that reports on one, `judging` compares every cell with the reported one.
"""
