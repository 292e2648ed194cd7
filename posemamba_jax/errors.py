"""The errors that programs show as one line, without a traceback."""


class UserError(Exception):
    """Something the user can put right; programs print its text and exit with code 2."""
