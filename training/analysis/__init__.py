"""Statistics of a finished run: what its network says of images, its errors, its components, how it meets strangers."""
