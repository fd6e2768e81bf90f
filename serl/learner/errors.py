"""What a learner group raises; read without torch."""


class LearnerError(RuntimeError):
    """A learner failed, died, or did not answer in time; the text says which one and doing what."""


class LearnerRaisedError(LearnerError):
    """What a learner was doing raised an error: where it does the same again, so may this."""
