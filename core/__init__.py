"""What every room may import: errors, atomic files, signals, hardware."""
