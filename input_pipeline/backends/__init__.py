"""Who touches pixels: Pillow, or C++ with the same bits."""
