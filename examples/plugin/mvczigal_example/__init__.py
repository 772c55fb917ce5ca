"""Example of a plug-in: a scorer, two objectives, a sampler of a flow, a recipe."""
