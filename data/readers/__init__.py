"""Files to typed rows, and to rejected lines with a reason."""
