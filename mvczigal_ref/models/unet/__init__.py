"""Single-view UNets: SDXL and Stable Diffusion 1.5, few-step or not."""
