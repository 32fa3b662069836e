"""The published training conversations: read, checked record by record, converted once.

annotations -> records and images -> convert -> load.
"""
