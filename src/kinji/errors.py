"""The one exception for mistakes a user can mend: its message says what, where and how to mend it."""


class KinjiError(Exception):
    """Bad input or a missing resource outside the method packages, phrased for the person at the terminal."""
