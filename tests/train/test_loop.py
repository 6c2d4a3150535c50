"""The step engine: what one step does, what is skipped, what a signal does."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from torch import Tensor, nn

from medssl.errors import ConfigError, TrainingError
from medssl.run import RunState
from medssl.train.device import available_cpus, choose_device, choose_dtype, fit_threads, native_bf16
from medssl.train.handlers import CheckpointWriter, Clock, Recorder
from medssl.train.loop import Skip, StepEngine, StepSettings, grouped, run_steps
from medssl.train.optim import make_optimizer, parameter_groups
from medssl.train.progress import ProgressDisplay
from medssl.train.run_folder import read_rows
from medssl.train.stopping import Stopped, StopRequest, stop_on_signals

CPU = torch.device("cpu")


def batch(step: int, micro: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step * 100 + micro))


def loader(accumulate: int, first: int = 0, spoil: frozenset[int] = frozenset()) -> Iterator[tuple[int, int, Tensor]]:
    for step in itertools.count(first):
        for micro in range(accumulate):
            yield step, micro, batch(step, micro) * (math.nan if step in spoil else 1.0)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


class Tiny(nn.Module):
    """What the engine asks of an objective, over any network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.heads, self.tasks = network, nn.ModuleDict(), nn.ModuleDict()
        self.commits: list[float] = []

    def ask(self, images: Tensor, step: int, progress: float) -> Tensor:
        return images

    def totals(self, asked: list[Tensor]) -> int:
        return sum(len(images) for images in asked)

    def forward(self, images: Tensor, total: int) -> dict[str, Tensor]:
        share = len(images) / total
        value = self.network(images).square().mean() * share
        return {"a": value, "b": value * 0 + share, "loss": value + 0.1 * share}

    def commit(self, progress: float) -> None:
        self.commits.append(progress)


def engine(module: nn.Module, steps: int = 6, accumulate: int = 1, first: int = 0, **more: object) -> StepEngine:
    spoil = more.pop("spoil", frozenset())
    clip, max_skipped = more.pop("clip", None), more.pop("max_skipped", 2)
    optimizer = make_optimizer(parameter_groups(module, 0.0), "sgd", 0.1)
    settings = StepSettings(CPU, lambda step: 0.1 / (step + 1), clip=clip, max_skipped=max_skipped)  # type: ignore[arg-type]
    batches = grouped(loader(accumulate, first, spoil), accumulate)  # type: ignore[arg-type]
    return StepEngine(Tiny(module), optimizer, batches, RunState(steps, first), settings, **more)  # type: ignore[arg-type]


def test_steps_are_counted_from_one_and_end_where_they_should() -> None:
    seen: list[tuple[int, float]] = []
    made = engine(net())
    made.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append((e.state.iteration, e.state.output[0]["loss"])))
    run_steps(made)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert made.run_state.step == 6 and made.learning_rate == pytest.approx(0.1 / 6)
    run_steps(made)
    assert len(seen) == 6


def test_going_on_from_a_step_is_the_unbroken_run_dropout_included() -> None:
    unbroken = net()
    run_steps(engine(unbroken, 6, accumulate=2))
    for stop in (1, 4, 5):
        broken = net()
        first = engine(broken, 6, accumulate=2)
        first.add_event_handler(Events.ITERATION_COMPLETED(once=stop), lambda e: e.terminate())
        run_steps(first)
        assert first.run_state.step == stop
        torch.rand(7)
        again = engine(broken, 6, accumulate=2, first=stop)
        again.optimizer.load_state_dict(first.optimizer.state_dict())
        run_steps(again)
        assert again.run_state.step == 6
        assert all(torch.equal(a, b) for a, b in zip(unbroken.state_dict().values(), broken.state_dict().values(), strict=True))


def test_global_random_numbers_are_left_alone() -> None:
    module = net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_steps(engine(module))
    assert torch.equal(torch.rand(3), expected)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    small, large = nn.Linear(3, 1), nn.Linear(3, 1)
    large.load_state_dict(small.state_dict())
    run_steps(engine(small, steps=1, accumulate=3))
    whole = torch.cat([batch(0, micro) for micro in range(3)])
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    (large(whole).square().mean() + 0.1).backward()
    optimizer.step()
    torch.testing.assert_close(small.weight, large.weight)


def instance_net() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    return nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, 1))


@pytest.mark.parametrize("made_by", [net, instance_net])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(made_by: Callable[[], nn.Module]) -> None:
    module, skips = made_by(), []
    before: dict[str, Tensor] = {}
    made = engine(module, 4, spoil=frozenset({2}), on_skip=skips.append)
    made.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: before.update({k: v.clone() for k, v in module.state_dict().items()})
    )
    made.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda: [torch.testing.assert_close(v, before[k]) for k, v in module.state_dict().items()]
    )
    run_steps(made)
    assert len(skips) == 1 and isinstance(skips[0], Skip)
    assert (skips[0].step, skips[0].terms) == (3, ("a", "b"))
    assert made.objective.commits == [0.0, 0.25, 0.75] and made.run_state.skipped == 1
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_past_the_limit_the_run_stops_and_names_term_and_step() -> None:
    made = engine(net(), 9, spoil=frozenset({1, 3, 5, 7}), max_skipped=2)
    with pytest.raises(TrainingError, match=r"'a', 'b' is not finite at step 6.*train.max_skipped: 2.*learning_rate"):
        run_steps(made)


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    class Root(Tiny):
        def forward(self, images: Tensor, total: int) -> dict[str, Tensor]:
            return {"loss": (self.network.weight * 0).sqrt().sum()}

    parameter = nn.Linear(1, 1)
    settings = StepSettings(CPU, lambda step: 0.1, max_skipped=0)
    optimizer = make_optimizer(parameter_groups(parameter, 0.0), "sgd", 0.1)
    made = StepEngine(Root(parameter), optimizer, grouped(loader(1), 1), RunState(3), settings)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="the gradient is not finite at step 1"):
        run_steps(made)


def test_recorder_checkpoints_and_stop(tmp_path: Path) -> None:
    request, saved = StopRequest(), []
    made = engine(net(), 10, spoil=frozenset({1}))
    clock = Clock(4)
    with ProgressDisplay("test", 10) as display:
        recorder = Recorder(tmp_path, 2, clock, display)
        made.on_skip = lambda skip: recorder.skip(skip, [1, 2])
        for handler in (clock, recorder):
            handler.attach(made)
        made.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda: setattr(request, "signal", 15))
        CheckpointWriter(saved.append, 3, request).attach(made)
        run_steps(made)
        recorder.sync()
        recorder.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["skipped"] == ["a", "b"] and rows[0]["loss"] is None
    assert set(rows[1]) == {"step", "a", "b", "loss", "learning_rate", "gradient_norm"}
    assert [row["step"] for row in read_rows(tmp_path / "timings.jsonl")] == [2, 4, 6]
    assert read_rows(tmp_path / "skipped.jsonl") == [{"step": 2, "terms": ["a", "b"], "samples": [1, 2]}]
    assert saved == [3, 6, 7] and made.run_state.step == 7


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_monai_handlers_attach_as_they_come() -> None:
    from monai.handlers import StatsHandler, from_engine

    mine = StatsHandler(name="medssl.train")
    usual = StatsHandler(output_transform=from_engine(["loss"], first=True), name="medssl.train", tag_name="usual")
    said = Said()
    logging.getLogger("medssl.train").addHandler(said)
    try:
        run_steps(engine(net(), 3, handlers=[mine, usual]))
    finally:
        logging.getLogger("medssl.train").removeHandler(said)
    assert sum(line.count("a: ") for line in said.lines) == 3
    assert sum(line.count("usual: ") for line in said.lines) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)])
def test_a_signal_asks_and_the_old_handlers_come_back(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request and request.signal == number
        request.received -= 1.0  # a person's second keystroke
        with pytest.raises(Stopped, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before
    assert Stopped(number).code == code


def test_training_works_outside_the_main_thread() -> None:
    done = []

    def work() -> None:
        with stop_on_signals() as request:
            made = engine(net(), 2)
            CheckpointWriter(done.append, 5, request).attach(made)
            run_steps(made)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert done == [2]


def test_precision_follows_the_device(bf16_units: bool) -> None:
    assert choose_dtype("fp32", CPU) is None
    assert choose_dtype("auto", CPU) is None
    assert choose_dtype("auto", torch.device("cuda:0")) is (torch.bfloat16 if bf16_units else None)
    if bf16_units:
        assert choose_dtype("bf16", CPU) is torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="precision: auto"):
            choose_dtype("bf16", CPU)


def test_the_processor_says_whether_it_has_bf16_units() -> None:
    assert native_bf16(CPU) in (True, False)
    assert not native_bf16(torch.device("mps"))


@pytest.mark.parametrize(("given", "threads"), [(None, 1), ("3", 3)], ids=["by affinity", "by the user"])
def test_training_has_no_more_threads_than_cpus(given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("medssl.train.device.available_cpus", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    try:
        torch.set_num_threads(3)
        run_steps(engine(net(), 2))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        monkeypatch.setattr("medssl.train.device.available_cpus", lambda: 8)
        fit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_available_cpus_are_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cpus() == len(before)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="not on this machine"):
        choose_device("cuda:77")
