"""Make the model that comes with the project: art, data, VAE, text encoder, UNet, evaluation, model card."""
