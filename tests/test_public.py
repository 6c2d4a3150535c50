"""What a person meets first: the names of medssl, its errors, its objects in a notebook, and what survives a spawned worker."""

from __future__ import annotations

import logging
import pickle
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medssl
from medssl import errors
from medssl.errors import MedsslError
from medssl.testing.writing import write_plugin
from medssl.train.progress import ProgressDisplay
from medssl.train.stopping import Stopped


def test_tab_and_help_show_the_public_names() -> None:
    assert {"pretrain", "fine_tune", "predict", "evaluate", "load_into", "encoder", "monai", "errors"} <= set(dir(medssl))
    assert all(getattr(medssl, name) is not None for name in dir(medssl))
    assert "PretextTaskd" in dir(medssl.monai) and not any(name.startswith("_") for name in dir(medssl.monai))
    assert all(getattr(medssl.monai, name) is not None for name in medssl.monai.__all__)
    shown = pydoc.render_doc(medssl.pretrain)
    assert "Pretrain a network on a store" in shown


def test_the_rooms_are_reached_without_loading_torch() -> None:
    code = "import sys, medssl; medssl.errors.MedsslError; dir(medssl.monai); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_error_has_a_builtin_parent() -> None:
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, MedsslError) and error is not MedsslError:
            assert issubclass(error, ValueError | RuntimeError | OSError), name


def test_errors_of_files_survive_pickling() -> None:
    from medssl.archive.limits import Refused
    from medssl.archive.nifti.files import NiftiProblem
    from medssl.archive.outcomes import Reason
    from medssl.archive.pictures.files import PictureProblem
    from medssl.archive.pixels.filling import SliceProblem
    from medssl.archive.pixels.values import PixelProblem

    for error in (Refused(Reason.TOO_LARGE), NiftiProblem(Reason.CORRUPT, "cut off"), PictureProblem(Reason.CORRUPT, "cut off")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
    slice_problem = pickle.loads(pickle.dumps(SliceProblem(3, PixelProblem("is cut off"))))
    assert slice_problem.number == 3 and str(slice_problem.cause) == "is cut off"


def test_what_survives_pickling(tmp_path: Path) -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(15, "stopped at step 3")))
    assert (stopped.signal, str(stopped), stopped.code) == (15, "stopped at step 3", 143)

    from medssl.archive import Index, build_index
    from medssl.testing.dicom import made_affine, made_volume, write_series

    write_series(tmp_path / "series", made_volume(), made_affine())
    build_index([tmp_path / "series"], tmp_path / "index", workers=1)
    index = Index(tmp_path / "index")
    again = pickle.loads(pickle.dumps(index))
    assert again.volumes() == index.volumes()
    assert repr(index).endswith("1 volumes)")
    assert "<table>" in index._repr_html_()

    from medssl.volumes import Store, make_store

    make_store([tmp_path / "index"], tmp_path / "store", workers=1)
    store = Store(tmp_path / "store")
    assert len(repr(store)) < 200
    assert "data:image/png;base64," in store._repr_html_()


def test_an_editable_install_is_a_package() -> None:
    pytest.importorskip("medssl_inpainting")
    from medssl.plugins import Plugins, provider_of

    assert provider_of(Plugins.load().task("inpainting")).package == "medssl-inpainting"


def test_a_library_is_told_by_its_logger(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medssl.train")
    with ProgressDisplay("pretraining", 1, verbose=False) as display:
        display.step(1, {"loss": 0.5}, 2.0, 0.1)
    assert capfd.readouterr().err == ""
    assert "pretraining step 1/1 loss 0.5" in caplog.text


SCRIPT = """
import medssl
from medssl.monai import AgreementLoss, PretextLoss, Store

run = medssl.pretrain("SegResNet", "store", tasks=["inpainting"], out="run", steps=3)
reveal_type(run.network)
reveal_type(medssl.NetworkSpec("SegResNet", spatial_dims=3, options={"init_filters": 8}).in_channels)
network, report = medssl.load_pretrained(None, run)
reveal_type(report.coverage)
reveal_type(medssl.load_into(network, run))
reveal_type(medssl.encoder(network).maps)
reveal_type(medssl.predict(run, ["a"], "out"))
reveal_type(medssl.evaluate("a", "b", run))
reveal_type(Store("store")[0])
reveal_type(PretextLoss("inpainting", block=4))
medssl.NetworkSpec("SegResNet", spatial_dim=3)
medssl.pretrain("SegResNet", out=3)
AgreementLoss(kind="k")
"""
REVEALED = (
    "torch.nn.modules.module.Module",
    "int",
    "float",
    "medssl.transfer.load.LoadReport",
    "def (images: torch._tensor.Tensor) -> tuple[torch._tensor.Tensor, ...]",
    "list[pathlib.Path]",
    "medssl.transfer.evaluate.Evaluation",
    "dict[str, Any]",
    "medssl.monai.losses.PretextLoss",
)


def test_a_type_checker_knows_the_public_names_and_has_nothing_to_say_of_a_new_plugin(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    plugin = write_plugin("some-noise", tmp_path) / "medssl_some_noise.py"
    # One run for both, and the next finds torch read already: mypy takes most of half a minute for that.
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(pytestconfig.cache.mkdir("mypy")), "script.py", str(plugin)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    revealed = re.findall(r'Revealed type is "(.*)"', said)
    assert tuple(re.sub(r"builtins\.|typing\.", "", one) for one in revealed) == REVEALED, said
    wrong = [line for line in said.splitlines() if ": error:" in line]
    assert len(wrong) == 3 and all(line.startswith("script.py:") for line in wrong), said
    assert "(checked 2 source files)" in said
    assert 'Unexpected keyword argument "spatial_dim"' in wrong[0] and '"out"' in wrong[1] and '"kind"' in wrong[2]
