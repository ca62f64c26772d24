"""The experiment: a recipe, its stages, and the run folder that they fill."""
