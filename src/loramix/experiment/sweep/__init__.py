"""Sweeps: one recipe with every combination of some settings, and what they have in common once."""
