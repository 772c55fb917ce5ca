"""Preflight: what an iteration will cost, and whether it will hold on this machine."""
