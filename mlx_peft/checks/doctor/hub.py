"""Whether the Hugging Face hub answers, and knows who asks."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_peft.checks.doctor.finding import Finding, fault, fine, warning
from mlx_peft.core import reach

REFUSED = 401
"""The status of an answer to somebody whom the hub does not know."""


def hub() -> Iterator[Finding]:
    """The hub is asked once whether it is there, and once whether it takes the token, if there is one."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield warning(
            "hub", "HF_HUB_OFFLINE is set: weights are taken from the cache alone", "unset HF_HUB_OFFLINE to download"
        )
        return
    if (silent := reach.silence()) is not None:
        yield warning(
            "hub", silent,
            "without it, weights are the cache's, a file's or a folder's; behind a proxy set HTTPS_PROXY, with a "
            "mirror HF_ENDPOINT",
        )  # fmt: skip
        return
    if (token := get_token()) is None:
        yield fine("hub", f"{constants.ENDPOINT} answers; without a token, which gated models and push need")
        return
    try:
        HfApi(endpoint=constants.ENDPOINT).whoami(token)
    except Exception as error:  # whose kind is not the same in every release
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == REFUSED:
            yield fault("hub", f"{constants.ENDPOINT} does not take the token", "hf auth login, or hf auth logout")
        else:
            said = str(error).strip().partition("\n")[0][:200]
            yield warning(
                "hub", f"{constants.ENDPOINT} answers, but not whose the token is ({said})", "try again later"
            )
    else:
        yield fine("hub", f"{constants.ENDPOINT} answers, and takes the token")
