"""What counts as a valid JSON payload, its values, and the reason of every bad one stay as they were recorded."""

import json

from headrace.schemas import codec_for
from tests.schemas import verdicts


def test_every_payload_gets_the_verdict_that_was_recorded():
    recorded = [json.loads(line) for line in verdicts.FILE.read_text().splitlines()]
    now = verdicts.verdicts()
    assert {verdict["reason"] for verdict in recorded if "reason" in verdict} == {
        "undecodable",
        "wrong_type",
        "missing",
    }
    assert sum("row" in verdict for verdict in recorded) > 100
    assert [pair for pair in zip(recorded, now, strict=True) if pair[0] != pair[1]] == []


def test_a_payload_gets_the_same_verdict_alone_as_in_a_batch():
    """Neighbours in a batch, good or bad, change nothing."""
    for event in (verdicts.Sample, verdicts.Timed):
        codec = codec_for(event)
        given = [payload for each, payload in verdicts.payloads() if each is event]
        whole = codec.decode(given)
        bad = {each.index: (each.reason, each.detail) for each in whole.bad}
        for index in range(0, len(given), 5):
            alone = codec.decode([given[index]])
            assert [(each.reason, each.detail) for each in alone.bad] == ([bad[index]] if index in bad else [])
            assert alone.frame.equals(whole.frame.filter(whole.payload_index == index))
