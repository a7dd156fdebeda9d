"""Files, preserved state, resources of the machine, and processes."""
