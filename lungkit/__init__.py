"""What two or more stages must share, and nothing else: contracts, not control flow."""
