"""What was asked for: recipes and clusters as frozen data."""
