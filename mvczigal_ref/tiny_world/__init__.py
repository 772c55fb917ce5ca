"""Tiny world: a grammar of prompts, an analytic renderer, and scorers that know the truth."""
