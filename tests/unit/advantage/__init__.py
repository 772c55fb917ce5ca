"""Unit tests of the `advantage` room."""
