"""A small procedural world: scenes, questions, conversations and benchmarks in official schemas."""
