"""The denoising engine: requests in, pictures out; one thread owns the device."""
