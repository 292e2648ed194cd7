"""Reading files that may be damaged or hostile, and writing without losing the old ones."""
