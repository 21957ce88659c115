"""What images are called, and whether the registry has them."""
