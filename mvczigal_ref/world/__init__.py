"""The tiny world: a closed grammar of prompts, its exact renderer and its exact judges."""
