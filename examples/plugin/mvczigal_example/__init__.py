"""Example of a plug-in: one scorer, one objective, one recipe."""
