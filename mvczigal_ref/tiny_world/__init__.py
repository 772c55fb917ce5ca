"""Tiny world: a grammar of prompts, an analytic renderer, and exact scorers."""
