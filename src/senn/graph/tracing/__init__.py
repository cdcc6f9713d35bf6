"""One forward pass, followed entry by entry: which unit each entry of each tensor belongs to."""
