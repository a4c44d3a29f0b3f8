"""Guessing the unit of a number of units since 1970."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.schemas.time_units import TIME_UNITS, UNITS_PER_S, likely_unit, likely_units

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("unit", TIME_UNITS)
@given(moment=st.datetimes(datetime(1971, 1, 1), datetime(2261, 12, 31)))  # noqa: DTZ001
def test_moments_of_three_centuries_tell_their_unit(unit, moment):
    number = int((moment.replace(tzinfo=UTC) - EPOCH) / timedelta(seconds=1)) * UNITS_PER_S[unit]
    assert likely_unit(number) == unit
    assert TIME_UNITS[likely_units(np.array([number]))[0]] == unit


@given(number=st.integers(-(2**63), 2**63 - 1))
def test_one_number_and_many_are_guessed_alike(number):
    [index] = likely_units(np.array([number])).tolist()
    assert likely_unit(number) == (None if index < 0 else TIME_UNITS[index])


@pytest.mark.parametrize("number", [0, -1, 31_535_999, -1_767_268_800])
def test_small_and_negative_numbers_tell_none(number):
    assert likely_unit(number) is None
