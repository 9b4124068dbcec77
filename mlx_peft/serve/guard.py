"""Who may ask what: the bearer token of a request, and the name that it calls the server by."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request

from mlx_peft.serve.known import Known
from mlx_peft.serve.problems import Problem, unknown
from mlx_peft.serve.settings import Settings
from mlx_peft.serve.tokens import EVERYTHING, Grant, same

CHALLENGE = {"www-authenticate": "Bearer"}


def bearer(request: Request) -> str | None:
    """The token of a request; None where it has none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def grant_of(request: Request, settings: Settings) -> Grant:
    """What whoever asks may ask. Raises Problem, 401, where a token is needed and is not there, or is none."""
    if settings.tokens is None:
        return EVERYTHING
    token = bearer(request)
    if token is not None and settings.admin_token is not None and same(token, settings.admin_token):
        return EVERYTHING
    found = None if token is None else settings.tokens.grant(token)
    if found is None:
        raise Problem(401, "a bearer token is needed, and there is none here that is known", CHALLENGE)
    return found


def must_administer(request: Request, settings: Settings) -> None:
    """Raises Problem: 403, where adapters are loaded by nobody; 401, where the token is not that which does it."""
    if settings.admin_token is None:
        raise Problem(403, "adapters are loaded by nobody here: the server was started without a token for that")
    token = bearer(request)
    if token is None or not same(token, settings.admin_token):
        raise Problem(401, "the token that loads adapters is needed", CHALLENGE)


def chosen(name: str | None, names: list[str], grant: Grant, found: Known | None) -> Known:
    """Whom an image asks: the one that is named, or of a single one that. Raises Problem, 404 or 409."""
    if name is None:
        if not names:
            raise Problem(409, "there is no model here that can be asked")
        raise Problem(409, f"no adapter is named, and {len(names)} are served: name one")
    if found is None or not grant.allows(name):
        raise unknown(name)
    return found


def must_be_of_here(method: str, headers: Headers, origins: tuple[str, ...]) -> None:
    """Raises Problem, 403, where a page of another site has a browser ask for more than to look.

    A browser sends a form of any page's to any server, which would compute for that page, though it reads no answer.
    Whence a request comes, browsers say themselves (Fetch Metadata); what is no browser does not.
    """
    elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if elsewhere and method not in ("GET", "HEAD", "OPTIONS") and not {headers.get("origin"), "*"} & {*origins}:
        raise Problem(403, "a page of another site asks, whose origin is not one of those that may")


def must_be_called(host: str, hosts: tuple[str, ...]) -> None:
    """Raises Problem, 421, where a request calls the server by a name that is not its own.

    A page of the web may have a name of its own lead to this machine, and would then read what is answered here.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if hosts and name.lower() not in hosts:
        raise Problem(421, "the server has no such name: ask it by the address that it listens on")
