"""Rules: how an ATen operation, or a whole layer, changes labels; see `registry`."""
