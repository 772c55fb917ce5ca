"""Seeded torture of files, settings and services: each script tries, and counts what held."""
