"""Files that loramix reads and writes, on disk and on the Hub; nothing here knows a model."""
