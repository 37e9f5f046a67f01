"""Stage 2: a scene of moving 3D Gaussians from an image matrix."""
