"""What a person meets first: the names of medssl, its errors, its objects in a notebook, and what survives a spawned worker."""

from __future__ import annotations

import logging
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import medssl
from medssl import errors
from medssl.errors import MedsslError
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
