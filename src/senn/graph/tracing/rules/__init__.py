"""What each operation, and each whole layer with a rule of its own, does to labels."""
