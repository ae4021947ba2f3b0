"""All shared mutable state of delivery, under one lock a bus."""
