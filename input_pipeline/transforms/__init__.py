"""What happens to an example between decoding and the model."""
