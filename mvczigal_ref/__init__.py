"""RL fine-tuning of few-step text-to-multiview diffusion, in the order the data flows."""

__version__ = "0.1.0"
