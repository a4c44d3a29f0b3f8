"""Label policies: when a request becomes examples, given that its labels arrive late.

    request t   |--- after ---|--------------------------------- within ------|
    Wait                                                                    all labels known: one example per candidate
    Correct                   known so far            positives as they arrive ('x  x')
    Importance                known so far; these positives also stand for later ones

A policy that does not wait sees p F positives and treats 1 - p F candidates as negative, where p is the probability of
a positive within the window and F the share of positives that arrive within `after`. With the weights

    negative     (1 - p) / (1 - p F)                        the probability that it is really negative
    positive     1 (Correct: later positives follow)        1 / F (Importance)

the expected gradient of an example is that of its final label: p of a positive, 1 - p of a negative. p is the model's
own prediction, without gradient. F is estimated from the ages at which positives arrived
(`headrace.pipelines.joining.delays`), and is one number for all examples.

Sources: Ktena et al. (2019), "Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR
Prediction", RecSys, section 4.2 (fake negative weighted: `Correct` at once); Yang et al. (2021), "Capturing Delayed
Feedback in Conversion Rate Prediction via Elapsed-Time Sampling", AAAI (a short wait before it); Yasui et al. (2020),
"A Feedback Shift Correction in Predicting Conversion Rates under Delayed Feedback", WWW (`Importance`). Differs from
them in: weights are per request, not normalised over emissions; F is one number and not a second model.
"""

from dataclasses import dataclass

from headrace.errors import DeclarationError
from headrace.features.argument_types import declared
from headrace.features.windows import parse_span_s


@declared
@dataclass(frozen=True, slots=True)
class Wait:
    """Learn from a request once its label window has closed. Nothing is estimated; the model lags by one window."""


@declared
@dataclass(frozen=True, slots=True)
class Correct:
    """Learn from a request at age `after`, and again from each candidate that becomes positive later.

    Late positives are looked for at ages 2 `after`, 4 `after`, .. and at the window's end.

    Args:
        after: first age, a whole number and a unit, as in "1m"; shorter than the label's window.

    Raises:
        DeclarationError: `after` is not such a span.
    """

    after: str

    def __post_init__(self) -> None:
        parse_span_s(self.after, "Correct(after)")


@declared
@dataclass(frozen=True, slots=True)
class Importance:
    """Learn from a request once, at age `after`; its positives are weighted to stand for later ones too.

    Args:
        after: age, a whole number and a unit, as in "1m"; shorter than the label's window.

    Raises:
        DeclarationError: `after` is not such a span.
    """

    after: str

    def __post_init__(self) -> None:
        parse_span_s(self.after, "Importance(after)")


LabelPolicy = Wait | Correct | Importance


def ages_us(policy: LabelPolicy, within_us: int) -> tuple[int, ...]:
    """Ages in microseconds at which the joiner examines a request, ascending; the last is the window's length.

    >>> ages_us(Correct("1m"), 300_000_000)
    (60000000, 120000000, 240000000, 300000000)

    Raises:
        DeclarationError: the policy's `after` is not shorter than the window.
    """
    if isinstance(policy, Wait):
        return (within_us,)
    age_us = parse_span_s(policy.after, type(policy).__name__) * 1_000_000
    if age_us >= within_us:
        raise DeclarationError(
            f"{policy}: the label's window is {within_us // 1_000_000} s; write a shorter `after`, or Wait()"
        )
    ages = []
    while age_us < within_us:
        ages.append(age_us)
        age_us *= 2
    return (*ages, within_us)
