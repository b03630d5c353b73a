"""Models that encode images into latents and decode them again."""
