"""From 2D keypoints to 3D poses: reading, lifting, smoothing, scaling, writing."""
