"""Flow transformers: FLUX and Stable Diffusion 3, their text encoders, and a tiny twin."""
