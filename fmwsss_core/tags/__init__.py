"""Which classes an image shows, where nobody has said so (method M8.2)."""
