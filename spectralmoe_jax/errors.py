"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A problem with the user's input: a file, a key, a value, a shape.

    The message is a single line that names the file, key or band, says what is
    wrong with it and what to do. The command line prints it without a traceback
    and exits with status 2.
    """


class RunLost(Exception):
    """A run of several processes cannot go on here; started again, it resumes."""
