"""Pictures of runs, errors and poses, still and moving."""
