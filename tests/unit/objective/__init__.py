"""Unit tests of the `objective` room."""
