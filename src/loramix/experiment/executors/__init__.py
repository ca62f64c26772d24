"""Executors: who does the steps of a run. One process in order, or Ray side by side."""
