"""Wrong lines that the unit tests must notice: one TOML file a topic, and the runner."""
