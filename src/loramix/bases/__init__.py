"""Base models and encoders by name: embedded, tiny, a folder, or a Hub id."""
