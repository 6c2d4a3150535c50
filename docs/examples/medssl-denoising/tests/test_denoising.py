"""Three lines inherit every check of the public contract."""

from medssl_denoising import Denoising

from medssl.testing import PretextTaskContract


class TestDenoising(PretextTaskContract):
    task = Denoising
