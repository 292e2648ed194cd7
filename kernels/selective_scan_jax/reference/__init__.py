"""The recurrence as it is written, differentiated by JAX: what every backend is tested against."""
