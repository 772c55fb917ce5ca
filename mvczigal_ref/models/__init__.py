"""Networks: the multi-view UNet and what surrounds it."""
