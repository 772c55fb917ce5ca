"""Held-out prompts: scored before and after training, and watched meanwhile."""
