"""The published training conversations: read, checked record by record, converted once.

annotations -> records and images -> convert. What is written is read by `grace.data.shards`.
"""
