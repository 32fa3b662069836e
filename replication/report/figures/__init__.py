"""Figures: one module each, drawn from result files alone."""
