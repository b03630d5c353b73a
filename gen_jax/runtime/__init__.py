"""What runs a method: keys, meshes, checkpoints, writers, pictures."""
