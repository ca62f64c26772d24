"""Tasks and their samples: read, cleaned, split, and put into batches of token ids."""
