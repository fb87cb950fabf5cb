"""What an installed wheel holds. An editable installation (`make install`) is the checkout: `make test-wheel` runs
this."""

import re
from importlib.metadata import distribution, version

import pytest

import flip_ctr

FILES = [str(path) for path in distribution("flip-ctr").files or []]
OWN = {
    path for path in FILES if path.startswith("flip_ctr") and ".dist-info/" not in path and "__pycache__" not in path
}
KINDS = [
    r"flip_ctr/(__init__|configuration_flip)\.py",
    r"flip_ctr/modeling_flip/\w+\.py",
    r"flip_ctr/(data|train|serve|estimator)/(\w+/)?\w+\.py",
    r"flip_ctr/train/accelerate_configs/\w+\.yaml",
    r"flip_ctr/train/presets/\w+\.yaml",
    r"flip_ctr/serve/templates/[\w.]+",
    r"flip_ctr/model_cards/template\w*\.md",
    r"flip_ctr/py\.typed",
    r"flip_ctr_command/__init__\.py",
]
installed = pytest.mark.skipif("flip_ctr/__init__.py" not in OWN, reason="an editable installation; `make test-wheel`")


@installed
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_there(kind):
    assert any(re.fullmatch(kind, path) for path in OWN)


@installed
def test_nothing_else_is_there():
    assert [path for path in OWN if not any(re.fullmatch(kind, path) for kind in KINDS)] == []


def test_the_version_has_one_place():
    assert flip_ctr.__version__ == version("flip-ctr")
