"""The terminal: `senn fit`, `predict`, `show` and `reproduce`."""
