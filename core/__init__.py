"""What every package may import: errors, atomic files, signals, hardware."""
