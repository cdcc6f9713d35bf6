"""What each ATen operation, and each layer with a rule of its own, does to labels; see `registry`."""
