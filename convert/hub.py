"""Files from the Hugging Face hub, cached, and the hub's many errors turned into advice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_peft.core import reach
from mlx_peft.core.errors import UserError

LOGIN = "log in with: hf auth login, or set HF_TOKEN"

WRITING = "the hub does not allow it: is the owner's name right, and may the token write?"
"""What a 403 means where something was to be written."""

REFUSALS = {
    401: f"the hub does not know the token: {LOGIN}",
    404: f"the hub shows nothing of that name; if it is private, {LOGIN}",
    412: "someone else changed the repository meanwhile: try again",
}
"""What the hub means by a status of HTTP, and what would help."""

HERE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""These errors of a transfer are of this machine's disk, not of the network."""


def download(repository: str, filename: str) -> Path:
    """A file of a hub repository, from the cache or fetched into it. ``HF_HUB_OFFLINE`` is respected.

    Where the hub cannot be reached, which is known in seconds, the cache alone is asked.

    Raises:
        UserError: where it cannot be had, saying what would help.
    """
    from huggingface_hub import constants, hf_hub_download  # half a second that only a download is worth

    advice = (
        f"it is not in the cache ({constants.HF_HUB_CACHE}) either: download it where there is a network (hf download "
        f"{repository} {filename}) and copy the cache, or name a file or a folder with these weights"
    )
    silent = reach.silence()
    with explained(repository, f"{filename} of {repository}", advice, silent):
        path = hf_hub_download(repository, filename, local_files_only=silent is not None)
    return Path(path)


def must_answer(what: str) -> None:
    """Raises UserError, in seconds, where the hub cannot be reached; ``what`` is asked for."""
    if (silent := reach.silence()) is not None:
        raise UserError(f"{what}: {silent}")


def cached(repository: str, filename: str) -> Path | None:
    """A file of a hub repository where it is in the cache; None where it is not. The hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename)
    return Path(found) if isinstance(found, str) else None


@contextmanager
def explained(
    repository: str, what: str, advice: str = "", silent: str | None = None, forbidden: str | None = None
) -> Iterator[None]:
    """Turns the hub's errors into a UserError that says what would help.

    Args:
        what: is asked for, at the head of the message.
        advice: for when the hub cannot be reached.
        silent: why it cannot be, where that is known: the block asks the cache alone.
        forbidden: what a 403 means; None: that something is given only to those who ask.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(f"{what} is gated: {_access(page)}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what}: the hub shows no such repository; if it is private or gated, {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what}: the repository has no such branch, tag or commit") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:  # the second is of the cache
        if _status(error.__cause__) == 403:
            raise UserError(f"{what}: the hub does not give it: {_access(page)}") from error
        offline = "HF_HUB_OFFLINE is set, and this needs the hub" if constants.HF_HUB_OFFLINE else None
        reason = offline or silent or _failed(error)
        raise UserError(f"{what}: {reason}{f'; {advice}' if advice else ''}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{what}: no such file in {page}") from error
    except errors.HfHubHTTPError as error:
        refusals = REFUSALS | {403: forbidden or f"the hub does not give it: {_access(page)}"}
        raise UserError(f"{what}: {refusals.get(_status(error)) or _first_line(error)}") from error
    except Exception as error:  # the HTTP client's own are not all OSErrors, and an upload's is a RuntimeError
        here = isinstance(error, OSError) and error.errno in HERE
        raise UserError(f"{what}: {_first_line(error) if here else _failed(error)}") from error


def _access(page: str) -> str:
    """How somebody who is logged in, or is not, comes to what is given only to those who ask."""
    from huggingface_hub import get_token

    if get_token() is None:
        return f"ask for access at {page} (its terms are there), then {LOGIN}"
    return (
        f"the account that is logged in here has no access. Ask for it at {page} (its terms are there), and try again "
        "once it is granted; a fine-grained token must be allowed to read gated repositories"
    )


def _status(error: BaseException | None) -> int:
    """The status of HTTP in the hub's answer; 0 where an error is none of the hub's."""
    from huggingface_hub.errors import HfHubHTTPError

    response = error.response if isinstance(error, HfHubHTTPError) else None
    return 0 if response is None else int(response.status_code)


def _failed(error: BaseException) -> str:
    from huggingface_hub import constants

    return f"the hub at {constants.ENDPOINT} failed: {_first_line(error.__cause__ or error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
