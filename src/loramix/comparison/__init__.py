"""The comparison: every model that could do a mixture's work, on the same questions, with intervals
and differences.
"""
