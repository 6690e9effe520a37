"""C++ for CPUs, and the one door to it."""
