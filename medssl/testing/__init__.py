"""Public contract suites for plugin authors, and tiny fixtures."""
