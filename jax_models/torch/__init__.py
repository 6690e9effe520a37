"""Weights in and out of PyTorch's names."""
