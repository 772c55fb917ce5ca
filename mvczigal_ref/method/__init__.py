"""Methods: the only code between the configuration and the stages, one file per family."""
