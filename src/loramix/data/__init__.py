"""Tasks and their samples: read, cleaned, split and joined into batches of token ids."""
