"""How cost grows: each point is measured, and one thing changes at a time."""

from measurements import cost_curves, short_training
from measurements.cost_curves import QUESTIONS, CostPoint


def test_each_point_is_measured_and_failures_are_said(build, monkeypatch):
    wanted = [
        CostPoint("length", tokens=48, batch_size=2),
        CostPoint("length", tokens=1_500, batch_size=2),
        CostPoint("model", model="t5-base", batch_size=2, tokens=64),
        CostPoint("rank", rank=2, batch_size=2, tokens=48),
        CostPoint("rank", rank=4, batch_size=2, tokens=48),
    ]
    rows = cost_curves.measure(wanted, steps=3, warm_up=1, build=build)
    assert [row["value"] for row in rows] == [48, 1_500, "t5-base", 2, 4]
    assert rows[1]["step_seconds"] > rows[0]["step_seconds"] > 0
    assert rows[0]["trainable_parameters"] == rows[0]["parameters"]
    assert rows[4]["trainable_parameters"] == 2 * rows[3]["trainable_parameters"] > 0

    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory\nmuch more")

    monkeypatch.setattr("torch.optim.AdamW", fails)
    failed = cost_curves.measure(wanted[:1], 1, 0, build)[0]
    assert failed["failed"] == "RuntimeError: CUDA out of memory"


def test_the_record_has_every_point(build, monkeypatch):
    monkeypatch.setattr(short_training, "build", build)
    monkeypatch.setattr(cost_curves, "POINTS", [CostPoint("batch", batch_size=1, tokens=48)])
    record = {}
    cost_curves.measure_growth(record)
    [point] = record["points"]
    assert point["samples_per_second"] > 0 and "peak_memory_bytes" not in point


def test_one_thing_changes_at_a_time():
    assert {point.question for point in cost_curves.POINTS} == set(QUESTIONS)
    for question, changes in QUESTIONS.items():
        some = [point for point in cost_curves.POINTS if point.question == question]
        for name in {"tokens", "batch_size", "model", "rank"} - {changes}:
            assert len({getattr(point, name) for point in some}) == 1
        assert len({getattr(point, changes) for point in some}) == len(some) >= 2
