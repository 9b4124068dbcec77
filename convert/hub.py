"""Files from the Hugging Face hub, cached, with its many errors turned into advice."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.config.errors import UserError


def download(repository: str, filename: str) -> Path:
    """A file of a hub repository, from the cache or fetched into it. ``HF_HUB_OFFLINE`` is respected.

    Raises:
        UserError: where it cannot be had, saying what would help.
    """
    from huggingface_hub import constants, errors, hf_hub_download  # half a second that only a download is worth

    what = f"{filename} of {repository}"
    page = f"https://huggingface.co/{repository}"
    try:
        return Path(hf_hub_download(repository, filename))
    except errors.GatedRepoError as error:
        advice = f"is gated: accept its terms at {page}, then log in with: hf auth login"
        raise UserError(f"{what} {advice}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: the hub shows no such repository; if it is private, log in with: hf auth login"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(
            f"{what} is not in the cache ({constants.HF_HUB_CACHE}) and {reason}; download it where there is a network "
            f"(hf download {repository} {filename}) and copy the cache, or name the file in model.weights"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{what}: no such file in {page}") from error
    except Exception as error:  # what is left: a full disk, and the HTTP client's own, which are not all OSErrors
        raise UserError(f"{what} cannot be downloaded: {error}") from error
