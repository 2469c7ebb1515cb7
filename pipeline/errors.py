"""The two errors a user can meet: a mistake to correct, and a clip that cannot be used."""


class UserError(Exception):
    """A mistake the user can correct; the command line prints it as one line and exits with status 2.

    The message names the file (and line or clip) and ends with the remedy.
    """


class ClipError(Exception):
    """One clip cannot be used. It is quarantined with this code and sentence; the build goes on.

    Attributes:
        code: one of the ``E_...`` codes, e.g. ``E_DECODE``, ``E_TOO_SMALL``.
        message: one sentence for a person.
        decoder: name of the decoder that gave up last, or None when no decoder ran.
        attempts: how many decoder attempts the clip had.
    """

    def __init__(self, code: str, message: str, decoder: str | None = None, attempts: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.decoder = decoder
        self.attempts = attempts
