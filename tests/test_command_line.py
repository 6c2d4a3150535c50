"""The command line: quick to answer, one message for each error, data on standard output alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from medssl.cli import main


def answer(*words: str) -> tuple[str, str, int, float]:
    """Standard output, standard error, exit code and CPU seconds of one call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "medssl", *words], capture_output=True, text=True, check=False, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, done.stderr, done.returncode, spent


def environment_without(*names: str, **values: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names} | values


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP, which torch has on Linux, can show what it read")
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ("OMP_WAIT_POLICY = 'PASSIVE'", "GOMP_SPINCOUNT = '0'")),
        ({"OMP_WAIT_POLICY": "active"}, ("OMP_WAIT_POLICY = 'ACTIVE'",)),
        ({"GOMP_SPINCOUNT": "1234"}, ("GOMP_SPINCOUNT = '1234'",)),
    ],
    ids=["nothing", "a policy", "a number of spins"],
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(given: dict[str, str], found: tuple[str, ...]) -> None:
    environment = environment_without("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", **given, OMP_DISPLAY_ENV="verbose")
    code = "from medssl.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\nimport torch"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert all(line in shown for line in found), shown


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_answer_at_once(word: str) -> None:
    spent = min(answer(word)[3] for _ in range(3))
    assert spent < 0.6


def test_help_imports_neither_torch_nor_monai() -> None:
    code = "import sys; sys.argv = ['medssl', '--help']\nfrom medssl.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'monai', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["indx"], "No such command 'indx'"),
        (["index", "somewhere"], "Missing option '--index'"),
        (["plugins", "show", "inpaintng"], "Did you mean 'inpainting'?"),
        (["plugins", "picture", "inpaintng"], "Did you mean 'inpainting'?"),
        (["plugins", "compare", "inpaintng", "--store", "none", "--out", "none"], "Did you mean 'inpainting'?"),
        (["pretrain", "none.yaml", "--out", "run"], "no configuration at none.yaml"),
    ],
)
def test_wrong_use_ends_in_one_message_and_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert "unexpected" not in captured.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("pretrain", "none.yaml", "--out", "run", "--debug")
    assert "Traceback" in capsys.readouterr().err


def test_json_is_one_document_on_standard_output() -> None:
    out, _, code, _ = answer("plugins", "list", "--json")
    assert code == 0
    assert {"plugins", "packages", "broken"} == set(json.loads(out))


def test_a_plugin_says_what_to_cite() -> None:
    out, _, code, _ = answer("plugins", "show", "relative-position")
    assert code == 0
    assert "Cite: Doersch, Gupta and Efros" in " ".join(out.split())
    assert "ICCV 2015" in json.loads(answer("plugins", "show", "relative-position", "--json")[0])["citation"]


def test_show_prints_options_with_ranges_defaults_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("plugins", "show", "inpainting", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "pretext task"
    assert all(option["help"] and option["type"] and option["default"] for option in shown["options"])


def test_square_brackets_in_a_table_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("plugins", "show", "inpainting")
    shown = " ".join(capsys.readouterr().out.split())
    assert "integer in [1, 256]" in shown
    assert "range [low, high]" in shown


def test_the_schema_knows_the_tasks_that_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("schema", "pretrain")
    text = capsys.readouterr().out
    schema = json.loads(text)
    assert schema["properties"]["tasks"]
    assert "inpainting" in text
    assert "simsiam" in text


def test_doctor_names_versions_devices_disk_decoders_and_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("doctor", "--json")
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"versions", "devices", "disk", "decoders", "plugins"}
    assert report["versions"]["torch"] != "not installed"


def test_index_of_an_empty_folder_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert code_of("index", str(tmp_path / "empty"), "--index", str(tmp_path / "index")) in {1, 2}
    assert "medssl: error:" in capsys.readouterr().err
