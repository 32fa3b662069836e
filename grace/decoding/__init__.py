"""Greedy decoding of plain and packed models, with a cache that is allocated once."""

from grace.decoding.decoder import Decoder
from grace.decoding.generation import generate, special_settings

__all__ = ["Decoder", "generate", "special_settings"]
