"""Files, state, memory, devices and processes that every other room relies on."""
