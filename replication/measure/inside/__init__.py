"""What trained models do inside: where the answer looks, how alike visual tokens are, and how
gates, weights and scales are distributed.

`questions` draws the questions, `observing` runs a model on them, `agreement` compares models,
`distributions` counts, `record` makes the measurement of all of it.
"""
