"""Vision transformers with learned spatial ideas."""
