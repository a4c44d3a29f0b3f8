"""Choice of the runner of a flow: Bytewax, on several workers, or the plain loop, with equal results.

`headrace run MODULE` and `run_flow` choose. `python -m bytewax.run MODULE:flow` works too, since a function decorated
with `@dataflow` returns a Bytewax Dataflow when called.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

from headrace.errors import ConfigError
from headrace.pipelines import loop
from headrace.pipelines.flow import Flow, OnStatus, Place

Runner = Literal["bytewax", "loop"]


def dataflow(declare: Callable[[], Flow]) -> Callable[[], Any]:
    """Decorate a module's `flow` function: calling it returns a Bytewax Dataflow, and `run_flow` uses its `Flow`."""

    @functools.wraps(declare)
    def flow() -> Any:
        from headrace.pipelines import on_bytewax

        return on_bytewax.dataflow_of(declare())

    flow.declare = declare  # type: ignore[attr-defined]
    return flow


def described_flow(flow: Any) -> Flow | None:
    """The `Flow` of a `Flow` or of a function decorated with `@dataflow`; None for anything else."""
    declare = getattr(flow, "declare", None)
    described = declare() if callable(declare) else flow
    return described if isinstance(described, Flow) else None


def run_flow(
    flow: Any, *, runner: Runner | None = None, workers: int = 1, say: Callable[[str], object] | None = None
) -> None:
    """Run a flow until its source ends, or SIGTERM or SIGINT arrives; then everything applied is flushed.

    `flow` is a `Flow`, a function decorated with `@dataflow`, or a Bytewax Dataflow. `runner` defaults to Bytewax if it
    is installed. `say` gets one line once the flow reads or waits for input: what it reads and writes. The default logs
    the line.

    Raises:
        ConfigError: the runner cannot run the flow, or is not installed.
        HeadraceError: the source or a step failed. Nothing is flushed then.
    """
    has_bytewax = importlib.util.find_spec("bytewax") is not None
    described = described_flow(flow)
    if runner == "bytewax" or (runner is None and has_bytewax):
        if not has_bytewax:
            raise ConfigError("runner bytewax needs a package: pip install 'headrace[flow]', or use --runner loop")
        from headrace.pipelines import on_bytewax

        on_bytewax.run(flow if described is None else on_bytewax.dataflow_of(described), workers, say=say)
        return
    if workers > 1:
        raise ConfigError(f"{workers} workers: the plain loop is one; use --runner bytewax, or leave --workers out")
    if described is None:
        raise ConfigError(
            f"flow is of type {type(flow).__name__}: the plain loop runs a function under @dataflow that returns a Flow"
        )
    _run_in_loop(described, say)


def _run_in_loop(flow: Flow, say: Callable[[str], object] | None) -> None:
    intake = flow.intake()
    with loop.graceful_stop() as stop:  # from here on, since steps may wait for their store when created
        steps = [job.make(Place(dead_letters=flow.dead_letters, stop=stop)) for job in flow.jobs]
        intake.warm_up()
        heartbeat = loop.Heartbeat(
            loop.up_line(flow.source, steps),
            say or loop.log_line,
            [
                functools.partial(_report, job.on_status, step)
                for job, step in zip(flow.jobs, steps, strict=True)
                if job.on_status is not None
            ],
        )
        outs = [job.out or loop.discard for job in flow.jobs]
        loop.drive(flow.source, intake, steps, outs, stop=stop, heartbeat=heartbeat)


def _report(on_status: OnStatus, step: loop.Step) -> None:
    on_status({"steps": [step.status()]})
