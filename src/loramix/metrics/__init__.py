"""Scores of generated text: ROUGE, BERTScore and the form of a haiku."""
