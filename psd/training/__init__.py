"""From a configuration to a record: the loop and what surrounds it."""
