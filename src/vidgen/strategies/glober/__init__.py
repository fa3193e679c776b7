"""GLOBER (Sun et al. 2023): a global feature first, then every frame on its own."""
