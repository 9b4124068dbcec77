"""Whether the Hugging Face hub can be reached, known in seconds: its client's own tries take minutes."""

from __future__ import annotations

import threading

PATIENCE = 4.0
"""The hub is asked whether it is there, and has so many seconds to answer."""

_answered: set[str] = set()
"""The addresses that have answered this process: they are not asked again."""


def silence() -> str | None:
    """Why the hub does not answer; None where it does, be it with a refusal, and where ``HF_HUB_OFFLINE`` is set.

    The bound holds for all of it (names that are not resolved, several addresses, a connection that nobody answers),
    which no timeout of a client's does: it is for one part each.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # with its proxies and certificates

    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or address in _answered:
        return None
    reasons = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            get_session().head(address, timeout=PATIENCE)
        except Exception as error:  # the HTTP client's own are not all OSErrors
            reasons[0] = str(error).strip().partition("\n")[0] or type(error).__name__
        else:
            _answered.add(address)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return None if address in _answered else f"the hub at {address} cannot be reached: {reasons[0]}"
