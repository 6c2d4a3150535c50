"""What goes wrong between a PACS and us, and what becomes of it: against a small server that misbehaves as told."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import ssl
import subprocess
import warnings
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from fake_pacs import Fake, Reply, Request
from medssl_dicomweb import DicomwebSource, gate
from medssl_dicomweb.asking import UnencryptedWarning
from medssl_dicomweb.gate import Gate, minutes_until
from medssl_dicomweb.location import place_of
from medssl_dicomweb.settings import Settings, settings_from

from medssl.archive import Index, Reason, build_index
from medssl.errors import ArchiveError, ConfigError, UsageError
from medssl.testing.dicom import made_affine, made_volume, write_series

Start = Callable[..., Fake]


@pytest.fixture
def series(archive: Path) -> np.ndarray:
    voxels = made_volume((6, 5, 4))
    write_series(archive / "ct", voxels, made_affine(), series="ct", patient="Nobody")
    return voxels


def read(folder: Path) -> list[np.ndarray]:
    index = Index(folder)
    return [index.read(record.volume).array for record in index.volumes()]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("dicomweb+https://someone:Sesame@pacs/dicom-web", "user name or password"),
        ("dicomweb+https://someone@pacs/dicom-web", "user name or password"),
        ("dicomweb+https://pacs/dicom-web?access_token=Sesame", "condition 1 .* no DICOM attribute"),
        ("dicomweb+https://pacs/dicom-web?Modality=CT&Modality=Sesame", "two conditions"),
        ("dicomweb+https://pacs/dicom-web?Modality=", "Modality .* no value"),
        ("dicomweb+https://pacs/dicom-web#Sesame", "cannot be read"),
        ("dicomweb+ftp://pacs/Sesame", "cannot be read"),
        ("dicomweb://pacs/Sesame", "cannot be read"),
        ("dicomweb+https:///Sesame", "cannot be read"),
        ("dicomweb+https://pacs:Sesame/", "cannot be read"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_showing_it(location: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        build_index([location], tmp_path / "index", workers=1)
    assert "Sesame" not in str(caught.value)
    assert not any(b"Sesame" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_address_and_its_conditions() -> None:
    place = place_of("dicomweb+https://pacs.example.org:8443/dicom-web/?Modality=CT&0020000E=1.2,3.4")
    assert place.url == "https://pacs.example.org:8443/dicom-web" and place.server == "pacs.example.org:8443"
    assert place.conditions == (("Modality", "CT"), ("0020000E", "1.2,3.4"))
    assert place_of("dicomweb+http://[::1]:80").url == "http://[::1]:80"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RATE": "Sesame"}, "MEDSSL_DICOMWEB_RATE cannot be used"),
        ({"CONNECTIONS": "0"}, "MEDSSL_DICOMWEB_CONNECTIONS cannot be used: .*greater than or equal to 1"),
        ({"HOURS": "Sesame"}, "MEDSSL_DICOMWEB_HOURS cannot be used: write hours as 20:00-06:00"),
        ({"PASSWORT": "Sesame"}, "MEDSSL_DICOMWEB_PASSWORT means nothing. Known after .*PASSWORD"),
        ({"PASSWORD": "Sesame"}, "a password needs a user"),
        ({"USER": "Sesame", "TOKEN": "Sesame"}, "set one of"),
        ({"CA": "/nowhere/Sesame.pem"}, "MEDSSL_DICOMWEB_CA cannot be used: the file cannot be read"),
        ({"CA": __file__}, "no certificates in PEM"),
        ({"CERT": __file__}, "no certificate in PEM with its key"),
        ({"KEY": __file__}, "a key needs a cert"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        settings_from({f"MEDSSL_DICOMWEB_{name}": value for name, value in given.items()})
    assert "Sesame" not in str(caught.value)


def test_settings_show_no_secret_and_the_page_names_each() -> None:
    settings = settings_from({"MEDSSL_DICOMWEB_USER": "someone", "MEDSSL_DICOMWEB_PASSWORD": "Sesame", "MEDSSL_DICOMWEB_RATE": "2.5"})
    assert "Sesame" not in repr(settings) and settings.rate == 2.5 and settings.connections == 4
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"`MEDSSL_DICOMWEB_{name.upper()}`" in page
        if isinstance(field.default, int | float):
            assert f"`MEDSSL_DICOMWEB_{name.upper()}` | {field.default:g} |" in page


def flaky(
    times: int, reply: Reply, kinds: tuple[str, ...] = ("series", "instances", "metadata", "frames")
) -> Callable[[Request], Reply | None]:
    """Each thing that is asked for is answered so for the first `times` times."""
    seen: dict[str, int] = {}

    def trouble(request: Request) -> Reply | None:
        seen[request.path] = seen.get(request.path, 0) + 1
        return reply if request.kind in kinds and seen[request.path] <= times else None

    return trouble


@pytest.mark.parametrize(
    "reply",
    [
        Reply(503),
        Reply(502),
        Reply(429, headers=(("Retry-After", "0"),)),
        Reply(500),
        Reply(200, b"x" * 1000, break_off=True),
        Reply(200, b"[{}" * 1000, break_off=True),
    ],
    ids=["503", "502", "429", "500", "broken off", "broken off in JSON"],
)
def test_what_passes_is_asked_again(reply: Reply, fake: Start, series: np.ndarray, tmp_path: Path) -> None:
    server = fake(trouble=flaky(2, reply))
    build_index([server.location], tmp_path / "index", workers=1)
    (found,) = read(tmp_path / "index")
    assert np.array_equal(found, series)
    paths = {request.path for request in server.requests}
    assert len(paths) == 7 and all(sum(one.path == path for one in server.requests) in (3, 4) for path in paths), "4: with a second page"


def test_waits_grow_and_a_server_that_says_how_long_is_believed(
    fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("medssl_dicomweb.asking.time.sleep", waits.append)
    monkeypatch.setenv("MEDSSL_DICOMWEB_BACKOFF", "2")
    monkeypatch.setenv("MEDSSL_DICOMWEB_ATTEMPTS", "8")
    server = fake(trouble=flaky(7, Reply(503), kinds=("metadata",)))
    build_index([server.location], tmp_path / "index", workers=1)
    waits = [wait for wait in waits if wait > 0.5]
    assert len(waits) == 7 and all(
        0.75 * wanted <= wait <= 1.25 * wanted for wait, wanted in zip(waits, (2, 4, 8, 16, 32, 60, 60), strict=True)
    )


def test_retry_after_is_waited(fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("medssl_dicomweb.asking.time.sleep", waits.append)
    server = fake(trouble=flaky(1, Reply(503, headers=(("Retry-After", "7"),)), kinds=("metadata",)))
    build_index([server.location], tmp_path / "index", workers=1)
    assert 7.0 in waits


def test_a_server_that_is_away_ends_the_command_with_one_message(
    fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSSL_DICOMWEB_ATTEMPTS", "4")
    server = fake(trouble=flaky(99, Reply(503), kinds=("metadata",)))
    for workers in (1, 2):
        server.requests.clear()
        with pytest.raises(
            ArchiveError, match=rf"the PACS at 127.0.0.1:{server.port} does not answer: 503 Service Unavailable, 4 times"
        ) as caught:
            build_index([f"{server.location}?PatientID=Nobody"], tmp_path / "index", workers=workers)
        assert sum(request.kind == "metadata" for request in server.requests) == 4
        assert "Nobody" not in str(caught.value) and "1.2.826" not in str(caught.value)
    server.stop()
    with pytest.raises(ArchiveError, match="the connection is refused, 3 times"):
        build_index([server.location], tmp_path / "index", workers=1)
    server.start()


def test_what_a_server_has_no_answer_to_is_unreadable_and_all_else_is_read(
    fake: Start, archive: Path, series: np.ndarray, tmp_path: Path
) -> None:
    other = np.abs(made_volume((4, 4, 5)))
    write_series(archive / "mr", other, made_affine(), modality="MR", series="mr", signed=False)
    server = fake()
    bad = str(server.objects[next(iter(server.objects))][0].SeriesInstanceUID)
    for kinds, count in ((("instances",), 1), (("metadata", "object"), 4)):
        for status in (404, 500):
            server.trouble = lambda request, kinds=kinds, status=status: (
                Reply(status) if request.kind in kinds and bad in request.path else None
            )
            summary = build_index([server.location], tmp_path / "index", workers=1)
            assert summary.rejected == {Reason.UNREADABLE: count}
            assert [np.array_equal(found, other) for found in read(tmp_path / "index")] == [True]


def test_who_is_not_let_in_is_told_what_to_set(fake: Start, series: np.ndarray, tmp_path: Path) -> None:
    for status in (401, 403):
        server = fake(trouble=lambda request, status=status: Reply(status))
        with pytest.raises(ArchiveError, match=rf"lets us not in \({status} .*MEDSSL_DICOMWEB_TOKEN"):
            build_index([server.location], tmp_path / "index", workers=1)
        assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [Reply(200, b"<html>Welcome</html>", "text/html"), Reply(200, b"3"), Reply(404), Reply(400)])
def test_what_is_no_dicomweb_is_said(reply: Reply, fake: Start, series: np.ndarray, tmp_path: Path) -> None:
    server = fake(trouble=lambda request: reply)
    with pytest.raises(ArchiveError, match="does not answer a search .*Give the address where its DICOMweb begins"):
        build_index([server.location], tmp_path / "index", workers=1)


def test_a_password_or_token_arrives_and_is_written_nowhere(
    fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token = tmp_path / "elsewhere"
    basic = f"Basic {b64encode(b'someone:Sesame').decode()}"
    for given, wanted in (
        ({"USER": "someone", "PASSWORD": "Sesame"}, basic),
        ({"TOKEN": "Sesame"}, "Bearer Sesame"),
        ({"TOKEN_FILE": str(token)}, "Bearer Sesame"),
    ):
        token.write_text("Sesame\n")
        with monkeypatch.context() as environment:
            for name, value in given.items():
                environment.setenv(f"MEDSSL_DICOMWEB_{name}", value)
            server = fake()
            build_index([server.location], tmp_path / "index", workers=2)
            assert len(read(tmp_path / "index")) == 1
            server.trouble = lambda request: Reply(403)
            with pytest.raises(ArchiveError) as caught:
                build_index([server.location], tmp_path / "index", workers=1)
        assert {request.headers.get("Authorization") for request in server.requests} == {wanted}
        token.unlink()
        secrets = ("Sesame", basic.partition(" ")[2])
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "archive" not in path.parts]
        assert len(written) > 4 and not any(secret.encode() in content for secret in secrets for content in written)
        assert not any(secret in text for secret in secrets for text in (str(caught.value), repr(caught.value), caplog.text))
    assert "1.2.826" not in caplog.text, "UIDs are no business of a log"


def test_a_token_that_is_renewed_is_read_again(fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("MEDSSL_DICOMWEB_TOKEN_FILE", str(token))

    def renew(request: Request) -> None:
        token.write_text("second")

    server = fake(trouble=renew)
    build_index([server.location], tmp_path / "index", workers=1)
    used = [request.headers["Authorization"] for request in server.requests]
    assert used[0] == "Bearer first" and set(used[1:]) == {"Bearer second"}
    server.trouble = lambda request: token.unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="TOKEN_FILE cannot be read"):
        build_index([server.location], tmp_path / "index", workers=1)


def test_a_secret_over_plain_http_is_warned_of_but_not_on_this_machine(fake: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSSL_DICOMWEB_TOKEN", "Sesame")
    with pytest.warns(UnencryptedWarning, match=r"token for pacs.example.org goes over the network in plain text"):
        DicomwebSource("dicomweb+http://pacs.example.org/dicom-web")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DicomwebSource("dicomweb+https://pacs.example.org/dicom-web")
        DicomwebSource("dicomweb+http://127.0.0.1:8042/dicom-web")


def test_no_password_goes_to_another_server(fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSSL_DICOMWEB_TOKEN", "Sesame")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    other = fake()
    server = fake(trouble=lambda request: Reply(302, headers=(("Location", f"{other.url}/series"),)))
    with pytest.raises(ArchiveError, match="sends us to another address"):
        build_index([server.location], tmp_path / "index", workers=1)
    assert other.requests == []


# Certificates of an authority of our own, as a hospital has one.


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem signs server.pem (for 127.0.0.1) and client.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates of this test, is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=Hospital", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        openssl(
            *(*new, "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:FALSE", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    return folder


def serving(certificates: Path, of_clients: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    if of_clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "ca.pem")
    return context


def test_the_certificate_is_checked_against_the_hospitals_own_authority(
    certificates: Path, fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake(tls=serving(certificates))
    with pytest.raises(ArchiveError, match="certificate of 127.0.0.1:.* Set MEDSSL_DICOMWEB_CA"):
        build_index([server.location], tmp_path / "index", workers=1)
    # What the environment trusts for the web at large counts neither for nor against.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
    with pytest.raises(ArchiveError, match="Set MEDSSL_DICOMWEB_CA"):
        build_index([server.location], tmp_path / "index", workers=1)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert server.requests == []
    monkeypatch.setenv("MEDSSL_DICOMWEB_CA", str(certificates / "ca.pem"))
    build_index([server.location], tmp_path / "index", workers=2)
    assert np.array_equal(read(tmp_path / "index")[0], series)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_is_shown(
    version: ssl.TLSVersion, certificates: Path, fake: Start, series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = serving(certificates, of_clients=True)
    context.minimum_version = context.maximum_version = version
    server = fake(tls=context)
    monkeypatch.setenv("MEDSSL_DICOMWEB_CA", str(certificates / "ca.pem"))
    with pytest.raises(ArchiveError, match="client certificate.* set MEDSSL_DICOMWEB_CERT"):
        build_index([server.location], tmp_path / "index", workers=1)
    assert server.requests == []
    monkeypatch.setenv("MEDSSL_DICOMWEB_CERT", str(certificates / "client.pem"))
    monkeypatch.setenv("MEDSSL_DICOMWEB_KEY", str(certificates / "client.key"))
    build_index([server.location], tmp_path / "index", workers=2)
    assert np.array_equal(read(tmp_path / "index")[0], series)


# How much, and when.


def listed_by_three(location: str) -> None:
    """Three processes that know nothing of each other list an archive at once."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=lambda: list(DicomwebSource(location).keys())) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_are_bounded_over_all_processes(connections: int, fake: Start, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        write_series(archive / str(number), made_volume((4, 4, 3), number), made_affine(), series=str(number))
    server = fake(slow=0.03)
    monkeypatch.setenv("MEDSSL_DICOMWEB_CONNECTIONS", str(connections))
    listed_by_three(server.location)
    assert server.busiest == connections


def test_requests_are_so_many_a_second_whoever_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [2e9]
    monkeypatch.setattr("medssl_dicomweb.gate.time.time", lambda: moment[0])
    one, other, elsewhere = Gate("pacs", 1, rate=2.0), Gate("pacs", 1, rate=2.0), Gate("other", 1, rate=2.0)
    assert [one._turn(), other._turn(), one._turn(), elsewhere._turn()] == [0.0, 0.5, 1.0, 0.0]
    moment[0] += 10
    assert [other._turn(), one._turn()] == [0.0, 0.5]


def test_the_rate_holds_over_all_processes(fake: Start, series: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake()
    monkeypatch.setenv("MEDSSL_DICOMWEB_RATE", "8")
    listed_by_three(server.location)
    moments = [request.moment for request in server.requests]
    assert len(moments) == 12 and moments[-1] - moments[0] > 0.9 * 11 / 8


@pytest.mark.parametrize(
    ("hours", "now", "minutes"),
    [
        ("", "12:00", 0),
        ("20:00-06:00", "19:59", 1),
        ("20:00-06:00", "20:00", 0),
        ("20:00-06:00", "23:59", 0),
        ("20:00-06:00", "05:59", 0),
        ("20:00-06:00", "06:00", 14 * 60),
        ("12:00-13:00, 20:00-24:00", "13:00", 7 * 60),
        ("12:00-13:00,20:00-24:00", "00:00", 12 * 60),
        ("00:00-24:00", "03:00", 0),
    ],
)
def test_hours_of_the_day(hours: str, now: str, minutes: int) -> None:
    settings = settings_from({"MEDSSL_DICOMWEB_HOURS": hours})
    assert minutes_until(settings.hours, datetime.strptime(now, "%H:%M")) == minutes


def test_outside_its_hours_a_request_waits_and_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = [datetime(2026, 1, 5, 19, 57, 30)]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        from datetime import timedelta

        slept.append(seconds)
        clock[0] += timedelta(seconds=seconds)

    monkeypatch.setattr(gate, "_now", lambda: clock[0])
    monkeypatch.setattr(gate, "_sleep", sleep)
    with Gate("pacs", 1, hours=((20 * 60, 6 * 60),)).entered():
        assert clock[0] >= datetime(2026, 1, 5, 20, 0)
    assert len(slept) == 3 and max(slept) <= 60
    assert [record.getMessage() for record in caplog.records] == [
        "the PACS is asked at the hours of MEDSSL_DICOMWEB_HOURS only: waiting for 3 minutes"
    ]


def test_a_clock_that_was_set_back_does_not_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [2e9]
    monkeypatch.setattr("medssl_dicomweb.gate.time.time", lambda: moment[0])
    held = Gate("pacs", 1, rate=1.0)
    assert [held._turn(), held._turn()] == [0.0, 1.0]
    moment[0] -= 1e6
    assert held._turn() == 0.0


def test_locks_in_a_folder_that_others_may_write_to_are_refused(tmp_path: Path) -> None:
    import os

    (tmp_path / "locks" / f"medssl-dicomweb-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / "locks" / f"medssl-dicomweb-{os.getuid()}").chmod(0o777)
    with pytest.raises(ArchiveError, match="not a folder of yours alone"), Gate("pacs", 1).entered():
        pass
