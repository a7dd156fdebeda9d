"""A rented machine: what travels there, what is done there, what comes back."""
