import pytest

from refocus.training.outcomes import StepMetrics
from refocus.training.progress import Interval, Meter, progress_line


def step(number: int, loss: float, waited_s: float) -> StepMetrics:
    return StepMetrics(number, loss, {}, 4, 1.0, 0.1, waited_s, 0.0, 0.0)


def test_intervals_of_ranks_add_up_to_the_whole_group() -> None:
    one = Interval(samples=40, steps=10, loss=20.0, waited_s=1.0, elapsed_s=10.0)
    two = Interval(samples=40, steps=10, loss=10.0, waited_s=3.0, elapsed_s=10.0)
    both = Interval.from_tensor(one.as_tensor() + two.as_tensor())
    assert both.mean_loss == pytest.approx(1.5)
    assert both.samples_per_s == pytest.approx(8.0)
    assert both.steps_per_s == pytest.approx(1.0)
    assert both.data_wait_share == pytest.approx(0.2)


def test_a_meter_sums_steps_until_it_is_restarted() -> None:
    meter = Meter()
    for number in range(3):
        meter.add(step(number, 2.0, 0.5))
    interval = meter.interval()
    assert (interval.samples, interval.mean_loss, interval.waited_s) == (12, 2.0, 1.5)
    meter.restart()
    assert meter.interval().steps == 0


def test_the_line_says_step_speed_waiting_and_the_best_so_far() -> None:
    interval = Interval(samples=40, steps=10, loss=20.0, waited_s=1.0, elapsed_s=10.0)
    line = progress_line(step(10, 2.0, 0.1), 70, interval, [{"validation_loss": -1.5}], world_size=2)
    assert line == "step 10/70  loss 2.0000  8.0 samples/s  waiting 10%  1.0 min left  best -1.5000"
