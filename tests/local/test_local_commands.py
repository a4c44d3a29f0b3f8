"""`headrace up`, `down`, `produce` and `tail` as a person uses them: real processes in a new project."""

import signal
import socket
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from headrace.cli import scaffold
from headrace.stack_state import FOLDER, read_state
from tests.house import commands
from tests.house.commands import start
from tests.local.processes import wait_until_gone

REPO = Path(__file__).parents[2]
PORTS = ("--redis-port", "0", "--broker-port", "0")


def headrace(root: Path, *arguments: str, text: str = "", code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends with exit code `code`."""
    ran = commands.headrace(*arguments, cwd=root, text=text)
    assert ran.code == code, ran
    assert "Traceback" not in ran.err
    return ran.out, ran.err


@pytest.fixture
def root(tmp_path):
    """A bare project; its services are stopped at the end, whatever happened."""
    folder = tmp_path / "mine"
    scaffold.init(folder, bare=True)
    yield folder
    headrace(folder, "down")


def action(number: int, **changes) -> str:
    """One line of JSON of the project's event."""
    now = datetime.now(UTC).isoformat()
    return orjson.dumps(
        {"action_id": f"a{number}", "event_time": now, "user_id": number % 3, "item_id": "x", **changes}
    ).decode()


def test_a_project_finds_its_own_services(root):
    """
    up | up again: is running, nothing changes | doctor names them | produce, tail | down: every command says so | down
    """
    _, said = headrace(root, "up", "--detach", *PORTS)
    state = read_state(root / FOLDER)
    assert f"up: Redis {state.redis_url}, broker {state.brokers}, topics actions, dead-letters, impressions" in said
    assert "stop: headrace down" in said
    _, said = headrace(root, "up", "--detach")
    assert said.startswith(f"already up: Redis {state.redis_url}")
    assert read_state(root / FOLDER) == state
    _, said = headrace(root, "up", "--redis-port", "1", code=1)
    assert f"--redis-port 1: it runs on {state.redis_port} (process {state.pid}); `headrace down` first" in said
    found = {one["name"]: one for one in orjson.loads(headrace(root, "doctor", "--json")[0])}
    assert found["headrace up"]["found"].startswith(f"process {state.pid} runs Redis at {state.redis_url} and a broker")
    assert [found[name]["state"] for name in ("headrace up", "redis", "broker")] == ["good"] * 3
    (root / "log.jsonl").write_text("\n".join([action(0), "{broken", action(1), action(2, action_id="")]) + "\n")
    _, said = headrace(root, "produce", "Action", "--from", "log.jsonl", code=1)
    assert said.splitlines()[-1] == "2 sent, 2 refused"
    assert "refused: log.jsonl · row 2: undecodable: " in said
    assert "refused: log.jsonl · row 4: out_of_range: action_id: " in said
    fields = "action_id,event_time,user_id,item_id\n"
    (root / "log.csv").write_text(f"{fields}c0,{datetime.now(UTC):%d/%m/%Y %H:%M},1,x\n")
    _, said = headrace(root, "produce", "Action", "--from", "log.csv", "--csv-time-format", "%d/%m/%Y %H:%M")
    assert said.splitlines()[-1] == "1 sent, 0 refused"
    with_bad = Producer({"bootstrap.servers": state.brokers})
    with_bad.produce("actions", b"\xff", partition=3)
    assert with_bad.flush(60) == 0
    shown, _ = headrace(root, "tail", "Action", "--from-start", "--count", "4", "--json")
    rows = [orjson.loads(line) for line in shown.splitlines()]
    assert sorted(row["row"]["action_id"] for row in rows if "row" in row) == ["a0", "a1", "c0"]
    assert [row["reason"] for row in rows if "row" not in row] == ["undecodable"]
    assert headrace(root, "down")[1] == "stopped\n"
    assert headrace(root, "down")[1] == "nothing runs\n"
    _, said = headrace(root, "run", "pipelines.materialize", code=1)
    assert "the Redis and the broker of this project do not run: start them with `headrace up`" in said
    _, said = headrace(root, "get", "features.views:UserActivity", "1", code=1)
    assert "does not run: start it with `headrace up`, or set HEADRACE_REDIS_URL" in said


def test_up_in_a_terminal_ends_with_ctrl_c_and_a_killed_one_is_recognised(root):
    """Ctrl-C stops both services; after kill -9 the next `up` uses the same ports, and says what is lost."""
    first = start(root, "up", *PORTS)
    line = first.stderr.readline()
    assert line.startswith("up: Redis redis://127.0.0.1:")
    before = read_state(root / FOLDER)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=90)
    assert first.returncode == 0
    assert not read_state(root / FOLDER).is_running
    second = start(root, "up")
    assert second.stderr.readline() == line
    assert second.stderr.readline() == (
        "the broker begins with empty topics: events that nobody had read are lost; Redis has kept its data\n"
    )
    pids = [int((root / FOLDER / name / f"{name}.pid").read_text().split()[0]) for name in ("redis", "broker")]
    second.kill()
    second.communicate()
    assert not read_state(root / FOLDER).is_running
    assert headrace(root, "down")[1] in {"stopped\n", "nothing runs\n"}
    assert all(wait_until_gone(pid) for pid in pids)
    headrace(root, "up", "--detach")
    after = read_state(root / FOLDER)
    assert (after.redis_port, after.broker_port) == (before.redis_port, before.broker_port)
    assert after.broker_starts == 3


def test_a_start_that_failed_lost_no_events(root):
    """
    port taken: `up` fails | `up`: nothing is lost | down | port taken | `up`: what the second one held is lost
    """
    lost = "events that nobody had read are lost"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        blocked = ("--redis-port", "0", "--broker-port", str(taken.getsockname()[1]))
        headrace(root, "up", "--detach", *blocked, code=1)
        headrace(root, "up", "--detach", *blocked, code=1)
        assert lost not in headrace(root, "up", "--detach", *PORTS)[1]
        headrace(root, "down")
        headrace(root, "up", "--detach", *blocked, code=1)
        assert lost in headrace(root, "up", "--detach", *PORTS)[1]


def test_events_of_a_new_class_get_their_topic_from_up(root):
    """Declared while the stack runs: `produce` says what to do, and `up` makes the topic."""
    headrace(root, "up", "--detach", *PORTS, "--partitions", "2")
    events = root / "schemas" / "events.py"
    more = 'class Visit(Event, topic="visits", key="user_id"):\n    event_time: datetime\n    user_id: int\n'
    events.write_text(events.read_text() + "\n\n" + more)
    visit = orjson.dumps({"event_time": datetime.now(UTC).isoformat(), "user_id": 1}).decode()
    _, said = headrace(root, "produce", "Visit", "--from", "-", text=visit, code=1)
    assert "has no topic 'visits'" in said
    assert "or run `headrace up` again, which makes the topics of new events" in said
    assert "; new topics: visits" in headrace(root, "up", "--detach")[1]
    assert headrace(root, "produce", "Visit", "--from", "-", text=visit)[1].endswith("1 sent, 0 refused\n")
    _, said = headrace(root, "produce", "Visits", "--from", "-", text="", code=1)
    assert "there are Action, Impression, Visit; did you mean Visit?" in said


def test_produce_ends_cleanly_with_ctrl_c(root):
    """It waits for what it handed over, says how far it is, and ends as a command that was interrupted does."""
    headrace(root, "up", "--detach", *PORTS)
    (root / "log.jsonl").write_text("\n".join(action(number) for number in range(1_000)) + "\n")
    sending = start(root, "produce", "Action", "--from", "log.jsonl", "--rate", "20")
    headrace(root, "tail", "Action", "--from-start", "--count", "2")
    sending.send_signal(signal.SIGINT)
    _, said = sending.communicate(timeout=90)
    assert sending.returncode == 130
    assert said.startswith("interrupted: ")
    sent = int(said.split()[1].replace(",", ""))
    assert 2 <= sent < 1_000
    shown, _ = headrace(root, "tail", "Action", "--from-start", "--count", str(sent), "--json")
    assert len(shown.splitlines()) == sent
