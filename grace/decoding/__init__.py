"""Greedy decoding of plain and packed models."""

from grace.decoding.generation import Decoder, generate

__all__ = ["Decoder", "generate"]
