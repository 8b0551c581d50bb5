"""What sciJEPA says when the input is at fault."""


class UserError(ValueError):
    """One clear sentence for the user: what failed, what was found, what was needed, what to do."""
