"""Networks of the published width with random weights, on the CPU; `nox -s full_width`."""
