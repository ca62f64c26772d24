"""Texts as token ids and back: chat templates, special tokens, batches, answers."""
