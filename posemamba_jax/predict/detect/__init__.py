"""From a video to 2D keypoints, with the networks of BlazePose and nothing else installed."""
