"""A picture that was not fetched, and whether another try may help."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818 - a state of the data, as `BadSample` is
    """One try has failed.

    Args:
        reason: in a few words, the same for all addresses that share it.
        passing: another try may succeed.
        retry_after_s: what the server asks to wait before the next request, if it says so.
        is_connection: nobody has answered.
    """

    def __init__(
        self, reason: str, *, passing: bool = False, retry_after_s: float | None = None, is_connection: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passing = passing
        self.retry_after_s = retry_after_s
        self.is_connection = is_connection
