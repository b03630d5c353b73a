"""Numbers that say how good images are: one file per metric."""
