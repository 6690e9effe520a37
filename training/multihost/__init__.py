"""Several processes as one program."""
