"""Own adapters in, one model out: gates fitted to a few examples of every expert, and a verdict."""
