"""One question to the server: who asks, what may go wrong, and whether it is asked again.

What the libraries below raise names addresses, and addresses hold UIDs and conditions: none of it reaches a message.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import requests
from dicomweb_client import DICOMwebClient
from requests import exceptions

from medssl.errors import ArchiveError, MedsslError
from medssl_dicomweb.gate import Gate
from medssl_dicomweb.location import Place
from medssl_dicomweb.parts import Part, parts_of
from medssl_dicomweb.settings import Settings

Answer = TypeVar("Answer")
# They log UIDs, and tracebacks, at levels that are commonly shown.
for _name in ("dicomweb_client", "retrying"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

AT_FIRST = 3
"""Attempts at the first question: whoever mistyped an address need not wait for minutes."""
LONGEST_BACKOFF = 60.0
LONGEST_ASKED = 300.0
"""Seconds of a server's Retry-After that are waited at most."""
_SERVER_ERRORS = 3
"""Attempts where the server says that it failed itself: the next one mostly fails too."""
_LATER = frozenset({408, 425, 429, 502, 503, 504})
_PASSING = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError, exceptions.ContentDecodingError)
"""What may be otherwise in a moment."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class UnencryptedWarning(UserWarning):
    """A password or token that goes over the network in plain text."""


class Unanswered(OSError):
    """The server has no answer to this one question; it has to others."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Connection:
    """What a question is asked with, by one thread."""

    client: DICOMwebClient
    session: requests.Session
    url: str
    timeout: float

    def parts(self, path: str, accept: str) -> list[Part]:
        """What lies under `path`, in parts of a media type."""
        response = self.session.get(f"{self.url}/{path}", headers={"Accept": f"multipart/related; {accept}"}, timeout=self.timeout)
        response.raise_for_status()
        return parts_of(response)


class _Again(Exception):
    """Worth another attempt."""

    def __init__(self, why: str, wait: float | None = None, attempts: int | None = None, status: int = 0) -> None:
        super().__init__(why)
        self.wait, self.attempts, self.status = wait, attempts, status


class Asking:
    """A server that can be asked by several threads, each with a connection of its own."""

    def __init__(self, place: Place, settings: Settings) -> None:
        self.place, self.settings = place, settings
        self._gate = Gate(place.server, settings.connections, settings.rate, settings.hours)
        self._own = threading.local()
        self._away = False
        secret = settings.user or settings.token.get_secret_value() or settings.token_file
        if secret and not place.encrypted and place.url.split("/")[2].rpartition(":")[0] not in _LOOPBACK:
            message = f"the password or token for {place.server} goes over the network in plain text. Ask it by https."
            warnings.warn(message, UnencryptedWarning, stacklevel=4)

    def ask(self, question: Callable[[Connection], Answer], attempts: int | None = None) -> Answer:
        """The answer; raises `Unanswered` where this question has none, `ArchiveError` where no question has."""
        most = 1 if self._away else attempts or self.settings.attempts
        tried = 0
        while True:
            tried += 1
            try:
                answer = self._once(question)
            except _Again as again:
                if tried < min(most, again.attempts or most):
                    time.sleep(self._wait(tried, again))
                    continue
                if again.attempts is not None:
                    raise Unanswered(str(again), again.status) from None
                # Others wait no longer for a server that is known to be away.
                self._away = True
                raise ArchiveError(
                    f"{self._who} does not answer: {again}, {tried} times. Run the same command again when it does."
                ) from None
            self._away = False
            return answer

    def _wait(self, tried: int, again: _Again) -> float:
        if again.wait is not None:
            return min(again.wait, LONGEST_ASKED)
        # Not all at once: others have been turned away in the same moment.
        return min(self.settings.backoff * 2.0 ** (tried - 1), LONGEST_BACKOFF) * random.uniform(0.75, 1.25)

    def _once(self, question: Callable[[Connection], Answer]) -> Answer:
        with self._gate.entered():
            try:
                return question(self._connection())
            except MedsslError:  # some of them are a ValueError too
                raise
            except exceptions.HTTPError as error:
                problem = self._of_status(error.response)
            except exceptions.TooManyRedirects:
                problem = ArchiveError(f"{self._who} sends us to another address. Give the address that it sends to, if it is yours.")
            except (exceptions.InvalidJSONError, ValueError):
                problem = Unanswered("what it answers is no DICOMweb")
            except exceptions.SSLError as error:
                problem = self._of_certificate(error)
            except _PASSING as error:
                problem = _Again(_why(error))
            except exceptions.RequestException as error:
                problem = ArchiveError(f"{self._who} cannot be asked ({type(error).__name__}). Check its address.")
        raise problem from None

    def _of_status(self, response: requests.Response | None) -> Exception:
        assert response is not None, "an HTTP error comes of an answer"
        status = response.status_code
        phrase = f"{status} {HTTPStatus(status).phrase}" if status in HTTPStatus._value2member_map_ else str(status)
        if status in (401, 403):
            return ArchiveError(
                f"{self._who} lets us not in ({phrase}). Set MEDSSL_DICOMWEB_USER and MEDSSL_DICOMWEB_PASSWORD, or MEDSSL_DICOMWEB_TOKEN, "
                "of someone who may."
            )
        if status in _LATER:
            return _Again(phrase, _retry_after(response))
        if status >= 500:
            return _Again(phrase, attempts=_SERVER_ERRORS, status=status)
        return Unanswered(phrase, status)

    def _of_certificate(self, error: exceptions.SSLError) -> Exception:
        causes = [cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)]
        if any("ALERT" in (cause.reason or "") for cause in causes):
            return ArchiveError(
                f"{self._who} takes no encrypted connection from us. If it wants a client certificate, set MEDSSL_DICOMWEB_CERT and "
                "MEDSSL_DICOMWEB_KEY to one that it knows."
            )
        if not any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            hint = "" if self.settings.cert else " (does it want a client certificate? Then set MEDSSL_DICOMWEB_CERT)"
            return _Again(f"the encrypted connection broke off{hint}")
        return ArchiveError(
            f"the certificate of {self.place.server} is not one that is trusted here. Set MEDSSL_DICOMWEB_CA to the file of the "
            "certificates that sign it, and write the host as the certificate does."
        )

    @property
    def _who(self) -> str:
        return f"the PACS at {self.place.server}"

    def _connection(self) -> Connection:
        if not hasattr(self._own, "connection"):
            session = self._session()
            # UIDs of PACSs are not always those of the standard.
            client = DICOMwebClient(self.place.url, session, permissive_uid=True, timeout=self.settings.timeout)
            client.set_http_retry_params(retry=False)
            self._own.connection = Connection(client, session, self.place.url, self.settings.timeout)
        connection = self._own.connection
        assert isinstance(connection, Connection)
        return connection

    def _session(self) -> requests.Session:
        session = requests.Session()
        # No proxy, no ~/.netrc and no list of certificates that the environment names for the web at large.
        session.trust_env = False
        session.max_redirects = 0
        session.auth = self._identified
        session.verify = str(self.settings.ca) if self.settings.ca else True
        if self.settings.cert:
            session.cert = (str(self.settings.cert), str(self.settings.key)) if self.settings.key else str(self.settings.cert)
        return session

    def _identified(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.settings.user:
            basic = requests.auth.HTTPBasicAuth(self.settings.user.encode(), self.settings.password.get_secret_value().encode())
            return basic(request)
        token = self.settings.bearer()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it; urllib3 keeps some as `reason` or among the arguments."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]


def _why(error: BaseException) -> str:
    if isinstance(error, exceptions.Timeout):
        return "it took too long"
    refused = any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))
    return "the connection is refused" if refused else "the connection broke off or cannot be made"


def _retry_after(response: requests.Response) -> float | None:
    try:
        return max(float(response.headers.get("Retry-After", "")), 0.0)
    except ValueError:
        return None
