"""Image labels from CLIP, where nobody has labelled the images (method M8.2)."""
