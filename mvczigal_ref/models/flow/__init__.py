"""Flow transformers: FLUX, Stable Diffusion 3 and Z-Image, their encoders, and tiny twins."""
