"""The picture of a training: drawn where matplotlib is installed, one clear error where it is not."""

import importlib.util

import pytest

import headrace
from headrace.errors import ConfigError, MissingExtraError
from headrace.pipelines.from_history.plot import check_plot, plot_curve
from tests.visits import NextPlace, visits

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed: pip install 'headrace[plot]'")
@pytest.mark.parametrize(("name", "beginning"), [("curve.png", b"\x89PNG"), ("curve.svg", b"<?xml")])
def test_the_curve_is_drawn(tmp_path, name, beginning):
    """A panel for each figure."""
    training = headrace.train(NextPlace, visits())
    plot_curve(training, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(beginning)


@pytest.mark.skipif(HAS_MATPLOTLIB, reason="matplotlib is installed")
def test_without_matplotlib_the_extra_is_named(tmp_path):
    """Before anything is trained."""
    with pytest.raises(MissingExtraError, match="pip install 'headrace.plot.'"):
        check_plot(tmp_path / "curve.png")


@pytest.mark.parametrize(("name", "message"), [("curve.pdf", ".png or .svg"), ("nowhere/curve.png", "no folder")])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        check_plot(tmp_path / name)
