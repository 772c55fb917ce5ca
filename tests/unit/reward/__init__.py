"""Unit tests of the `reward` room."""
