"""Bodies that move: kinematics, generated motion, and the cameras that watch."""
