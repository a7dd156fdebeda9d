"""Linear networks at any weights, from the moments of the data."""
