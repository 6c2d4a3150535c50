"""What a PACS is asked with, from the environment: never part of a location, which an index keeps."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator

from medssl.config import BaseOptions
from medssl.errors import ConfigError

PREFIX = "MEDSSL_DICOMWEB_"
_HOURS = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)")
DAY = 24 * 60

Window = tuple[int, int]
"""First minute of the day, and the first that is not in it any more; a smaller end lies on the next day."""


def _windows(text: object) -> object:
    if not isinstance(text, str):
        return text
    found = [_HOURS.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValueError("write hours as 20:00-06:00, several between commas")
    times = [[int(number) for number in match.groups()] for match in found if match]
    return tuple(((first * 60 + minute) % DAY, (last * 60 + end) % DAY) for first, minute, last, end in times)


def _there(path: Path) -> Path:
    path = path.expanduser()
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from None


ReadableFile = Annotated[Path, AfterValidator(_there)]


class Settings(BaseOptions):
    """Each field is the environment variable `MEDSSL_DICOMWEB_` and its name in capitals."""

    user: str = Field("", description="User name for basic authentication.")
    password: SecretStr = Field(SecretStr(""), description="Its password.")
    token: SecretStr = Field(SecretStr(""), description="Bearer token, instead of user and password.")
    token_file: ReadableFile | None = Field(None, description="File of the token; read for each request, so that it may be renewed.")
    ca: ReadableFile | None = Field(None, description="Certificates (PEM) that sign the server's, instead of the public ones.")
    cert: ReadableFile | None = Field(None, description="Client certificate (PEM), with its key or beside it.")
    key: ReadableFile | None = Field(None, description="Key of the client certificate (PEM, without a password).")
    connections: int = Field(4, ge=1, le=64, description="Requests under way at once, over all processes of this machine.")
    rate: float = Field(0.0, ge=0.0, le=10_000.0, description="Requests a second, over all processes of this machine; 0 is no limit.")
    hours: Annotated[tuple[Window, ...], BeforeValidator(_windows)] = Field(
        (), description="Hours of the day (local time) at which it is asked, as 20:00-06:00, several between commas; empty is always."
    )
    timeout: float = Field(60.0, gt=0.0, le=3600.0, description="Seconds without a byte after which a request is given up.")
    attempts: int = Field(10, ge=1, le=100, description="How often a request is made before the server counts as away.")
    backoff: float = Field(0.5, ge=0.0, le=600.0, description="Seconds before the second attempt; then twice as long each time, up to 60.")

    @model_validator(mode="after")
    def _one_identity(self) -> Settings:
        basic, token = bool(self.user or self.password.get_secret_value()), bool(self.token.get_secret_value())
        if basic + token + (self.token_file is not None) > 1:
            raise ValueError("set one of user with password, token, token_file")
        if basic and not self.user:
            raise ValueError("a password needs a user")
        if self.key is not None and self.cert is None:
            raise ValueError("a key needs a cert")
        return self

    @model_validator(mode="after")
    def _certificates(self) -> Settings:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError:
            raise ValueError("the ca holds no certificates in PEM") from None
        try:
            if self.cert is not None:
                # An answer in the place of a question at the terminal, where the key has a password.
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, ValueError):
            raise ValueError("cert and key are no certificate in PEM with its key, which must have no password") from None
        return self

    def bearer(self) -> str:
        """The token as it is now; empty where there is none. Raises `ConfigError`."""
        if self.token_file is None:
            return self.token.get_secret_value().strip()
        try:
            return self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"the token in {PREFIX}TOKEN_FILE cannot be read. Renew it, and start again.") from None


def settings_from(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the environment; raises `ConfigError`, which names variables and shows no value."""
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX) and value != ""
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise ConfigError(". ".join(_said(problem) for problem in error.errors(include_input=False, include_url=False))) from None


def _said(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return f"{PREFIX}...: {message}"
    name = f"{PREFIX}{str(problem['loc'][0]).upper()}"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(field.upper() for field in Settings.model_fields)
        return f"the environment variable {name} means nothing. Known after {PREFIX}: {known}"
    return f"the environment variable {name} cannot be used: {message}"
