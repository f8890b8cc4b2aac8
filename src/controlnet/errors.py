"""The two ways in which a command ends on purpose; everything else that is raised is a bug with a traceback."""


class UserError(Exception):
    """The request cannot be done as asked: exit code 2, printed without a traceback.

    The message says what was found, what was expected and what to do.
    """


class DefectsFound(Exception):
    """A check did its work and found defects: exit code 1. The message sums them up; the report is already printed."""
