"""What deployment costs on the true architectures: time to first token, decode rate, memory.

Speed and memory do not depend on the values of the weights, so the published architectures are
built with random ones. `architectures` holds them as data, `weights` builds a model layer by layer,
`variants` says what the decoder's linears become, `measure` takes the numbers of one variant in the
process it runs in, and `benchmark` runs one process a variant and puts the results side by side.

    python -m replication.measure.speed --models llava-1.5-7b --variants bf16,int4

needs torch and transformers, nothing else of the replication.
"""
