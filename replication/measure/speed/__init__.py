"""What deployment costs on the published architectures: time to first token, decode rate, memory.

Speed and memory do not depend on the values of the weights, so the architectures are built with
random ones. `weights` builds a model layer by layer, `variants` says what the decoder's linears
become, `measure` takes the numbers of one variant in the process it runs in, and `benchmark` runs
one process for each variant and puts the results side by side.

    python -m replication.bench speed --models llava-1.5-7b --variants bf16,int4
"""
