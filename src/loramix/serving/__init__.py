"""A mixture behind OpenAI's API: the embedded engine, the HTTP server, and its playground."""
