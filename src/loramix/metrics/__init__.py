"""Scores of generated text: against a reference, of its form and of its variety."""
