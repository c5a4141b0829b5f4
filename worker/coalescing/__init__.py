"""Any diffusers text-to-image pipeline, unmodified: one denoiser for many jobs, in shared passes."""
