"""Services: lifecycle, subscriptions, status."""
