"""What records events and waits for them."""
