"""Wrong lines that the unit tests must notice: one TOML file per room, and the runner."""
