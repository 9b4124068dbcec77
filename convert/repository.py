"""A repository of the Hugging Face hub as a folder: written in one commit, read with suspicion.

The token is the environment's, or that of a login; huggingface_hub reads it, and nothing here looks at it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.files import listed
from convert.hub import LOGIN, WRITING, explained, must_answer
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import new_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

TEXT = 10**7
TENSORS = 2 * 10**10
LARGEST = {".safetensors": TENSORS, ".json": TEXT, ".md": TEXT, ".txt": TEXT}
"""Only files with these suffixes are fetched, none of which can run anything; the bytes that one may have."""

MOST = 32
"""A repository that is fetched has at most so many files."""

KEPT = {".gitattributes", "README.md"}
"""A repository may hold these besides the files that are written to it: the hub's own, and a card, which is
replaced."""

PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def checked_name(repository: str) -> str:
    """The name, where it is one. Raises UserError."""
    if not re.fullmatch(f"{PART}/{PART}", repository) or ".." in repository or len(repository) > 96:
        raise UserError(f"{repository!r} is not the name of a repository: write OWNER/NAME")
    return repository


def upload(
    repository: str, files: Mapping[str, Path | bytes], *, private: bool = False, revision: str | None = None
) -> str:
    """Writes files to a repository in one commit, all or none; makes the repository or the branch where there is none.

    What is there is looked at before anything is made, and is what the commit follows: a refusal leaves the hub as it
    was, and what someone else commits meanwhile is not written over.

    Returns:
        The commit's address.

    Raises:
        UserError: where nobody is logged in, the repository is another's or holds other files, is public and was to be
            private, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    what = checked_name(repository)
    if get_token() is None:
        raise UserError(f"{what}: writing to the hub needs a login: {LOGIN}")
    api = HfApi()
    must_answer(what)
    with explained(repository, what, forbidden=WRITING):
        there = _there(api, repository, revision)
        if there is None:
            api.create_repo(repository, private=private or None, exist_ok=True)
            there = api.model_info(repository)
        if private and not there.private:
            raise UserError(
                f"{what} exists and is public: do not ask for a private one, or choose another name",
                arguments=("private",),
            )
        others = {sibling.rfilename for sibling in there.siblings or ()} - files.keys() - KEPT
        if others:
            raise UserError(
                f"{what} holds other files: {listed(sorted(others))}; choose another name, or another branch",
                arguments=("revision",),
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, revision=there.sha, exist_ok=True)
        commit = api.create_commit(
            repository,
            [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in files.items()
            ],
            commit_message="Upload with mlx-peft",
            revision=revision,
            parent_commit=there.sha,
        )
    return str(commit.commit_url)


def _there(api: HfApi, repository: str, revision: str | None) -> ModelInfo | None:
    """A branch, or the main one, from which it would be made; None where there is no repository."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with suppress(RepositoryNotFoundError):
        try:
            return api.model_info(repository, revision=revision)
        except RevisionNotFoundError:
            return api.model_info(repository)
    return None


def fetch(repository: str, out: Path, check: Callable[[Path], None], *, revision: str | None = None) -> str:
    """Copies a repository into a new folder, whole or not at all; what was fetched before comes from the hub's cache.

    Args:
        check: raises UserError where the folder is not what was expected.
        revision: a branch, a tag or a commit; None: the main branch.

    Returns:
        The commit that was fetched.

    Raises:
        UserError: before anything is fetched, where a file is of another kind than LARGEST's, lies in a folder, or is
            too large; and where ``out`` is there, or the hub does not have what is asked for.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    what = f"{checked_name(repository)}{f' at {revision}' if revision else ''}"
    must_answer(what)
    with explained(repository, what):
        found = api.model_info(repository, revision=revision, files_metadata=True)
    files = _allowed(found.siblings or (), what)
    with new_folder(out) as new:
        for file in files:
            with explained(repository, f"{file.rfilename} of {what}"):
                got = Path(api.hf_hub_download(repository, file.rfilename, revision=found.sha))
            shutil.copyfile(got, new / file.rfilename)
            _as_announced(new / file.rfilename, file, what)
        check(new)
    return str(found.sha)


def _allowed(siblings: Any, what: str) -> list[Any]:
    """The files to fetch. Raises UserError where there is one that may not be."""
    files = [file for file in siblings if file.rfilename != ".gitattributes"]
    if odd := [file.rfilename for file in files if not re.fullmatch(PART, file.rfilename)]:
        raise UserError(f"{what}: only files outside of folders are fetched, not {listed(map(repr, odd))}")
    if odd := [file.rfilename for file in files if Path(file.rfilename).suffix not in LARGEST]:
        raise UserError(f"{what}: only {', '.join(LARGEST)} files are fetched, not {listed(odd)}; nothing was fetched")
    if odd := [file.rfilename for file in files if not 0 <= _size(file) <= LARGEST[Path(file.rfilename).suffix]]:
        raise UserError(
            f"{what}: these files are too large, or their length is not stated: {listed(odd)}; nothing was fetched"
        )
    if len(files) > MOST or not files:
        raise UserError(f"{what} should have 1 to {MOST} files, not {len(files)}")
    return files


def _size(file: Any) -> float:
    """Its bytes; infinite where that is not said."""
    return float("inf") if file.size is None else int(file.size)


def _as_announced(path: Path, file: Any, what: str) -> None:
    """Raises UserError where a file has another length, or another hash, than the repository's list says."""
    same = path.stat().st_size == file.size
    if same and file.lfs is not None:
        with open(path, "rb") as content:
            digest = hashlib.sha256()
            while block := content.read(1 << 20):
                digest.update(block)
        same = digest.hexdigest() == file.lfs.sha256
    if not same:
        raise UserError(f"{file.rfilename} of {what} is not the file that the repository lists: try again")
