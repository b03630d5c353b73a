"""What can be found in the latents of a generator: directions, and the place of a given image."""
