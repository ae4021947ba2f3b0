"""A reference model of the bus, and random programs that hold the bus against it (`sequential`, `concurrent`)."""
