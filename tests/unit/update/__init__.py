"""Unit tests of the `update` room."""
