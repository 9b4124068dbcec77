"""Bearer tokens: who may ask which adapters.

A file of them has a line each: the token, and behind it the adapters that it may ask, or ``*`` for all. ``#`` begins a
comment. Only digests are kept.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_peft.core.errors import UserError
from mlx_peft.library.entries import must_be_name

SHORTEST = 16
"""Characters of a token: of random letters and digits, more than anybody can try."""

ALL = "*"

LARGEST = 2**20
"""Bytes of a file of tokens."""


@dataclass(frozen=True)
class Grant:
    """What a token may ask.

    Attributes:
        adapters: their names; None: all.
    """

    adapters: frozenset[str] | None = None

    def allows(self, name: str) -> bool:
        return self.adapters is None or name in self.adapters


EVERYTHING = Grant()


class Tokens:
    """Tokens, by their digests.

    Args:
        grants: what each token may ask.
    """

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        self._grants = [(_digest(token), grant) for token, grant in grants.items()]

    def __len__(self) -> int:
        return len(self._grants)

    def grant(self, token: str) -> Grant | None:
        """What a token may ask; None for a token that nobody has. The time that it takes tells nothing of any."""
        given, found = _digest(token), None
        for own, grant in self._grants:
            if hmac.compare_digest(own, given):
                found = grant
        return found


def same(token: str, wanted: str) -> bool:
    """Whether two tokens are one. The time that it takes tells nothing of either."""
    return hmac.compare_digest(_digest(token), _digest(wanted))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def must_be_token(token: str, where: str) -> None:
    """Raises UserError where a text is none: too short to be secret, or what no header can hold. It is not shown."""
    if len(token) < SHORTEST or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"{where}: a token should be {SHORTEST} or more ASCII characters without blanks, as python -c 'import "
            "secrets; print(secrets.token_urlsafe())' prints one"
        )


def read_tokens(files: Iterable[Path]) -> Tokens:
    """The tokens of files. Raises UserError where one cannot be read, or a line is no token with names."""
    found: dict[str, Grant] = {}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            words, where = line.partition("#")[0].split(), f"{file}, line {number}"
            if not words:
                continue
            token, *names = words
            must_be_token(token, where)
            if token in found:
                raise UserError(f"{where}: the token is there twice: write all its adapters on one line")
            found[token] = _granted(names, where)
    if not found:
        raise UserError("the files of tokens have no token in them: a line each, the token and its adapters")
    return Tokens(found)


def _lines(file: Path) -> list[str]:
    try:
        with open(file, "rb") as opened:
            content = opened.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{file}: larger than {LARGEST:,} bytes: not a file of tokens")
        return content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not text in UTF-8") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _granted(names: list[str], where: str) -> Grant:
    if not names:
        raise UserError(f"{where}: behind the token stand the adapters that it may ask, or {ALL} for all")
    if ALL in names:
        return EVERYTHING
    for name in names:
        try:
            must_be_name(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return Grant(frozenset(names))
