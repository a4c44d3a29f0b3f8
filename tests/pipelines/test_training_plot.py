"""The picture of a training, and one clear error where it cannot be drawn."""

import pytest

import headrace
from headrace.errors import ConfigError
from headrace.pictures import check_plot
from headrace.pipelines.from_history.plot import plot_curve
from tests.house.test_extras import python
from tests.visits import NextPlace, visits


@pytest.mark.parametrize(("name", "beginning"), [("curve.png", b"\x89PNG"), ("curve.svg", b"<?xml")])
def test_the_curve_is_drawn(tmp_path, name, beginning):
    """A panel for each figure."""
    training = headrace.train(NextPlace, visits())
    plot_curve(training, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(beginning)


def test_without_matplotlib_the_extra_is_named():
    """Before anything is trained."""
    program = "from pathlib import Path\nfrom headrace.pictures import check_plot\ncheck_plot(Path('curve.png'))\n"
    done = python(program, without={"matplotlib"})
    assert done.stderr.splitlines()[-1].startswith("headrace.errors.MissingExtraError: ")
    assert "pip install 'headrace[plot]'" in done.stderr


@pytest.mark.parametrize(("name", "message"), [("curve.pdf", ".png or .svg"), ("nowhere/curve.png", "no folder")])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        check_plot(tmp_path / name)
