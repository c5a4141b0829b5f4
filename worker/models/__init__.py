"""Finding, checking and loading diffusion models."""
