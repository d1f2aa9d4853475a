"""What more GPUs can bring: a prediction from a measured step and the bytes of gradients that are exchanged.

A model of the best case, to be held against measurements: nothing but the exchange is added to a step, whole and behind
it, as `parallel.average_gradients` does it (DDP hides a part behind the backward pass). `measured` holds it against the
records of module `benchmark`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .base_models import GIB, title

GB = 1e9


@dataclass(frozen=True)
class Link:
    """How many bytes a second a GPU can send to its neighbour, in GB/s: "bus bandwidth" as nccl-tests measures it.

    The numbers in `LINKS` are peaks in one direction by the vendor's data sheets; what is reached is less. Measure it:
    github.com/NVIDIA/nccl-tests, `all_reduce_perf`, column busbw.
    """

    name: str
    gigabytes: float


LINKS = (
    Link("NVLink 4 (H100 SXM)", 450),  # nvidia.com/en-us/data-center/h100: 900 GB/s, both directions together
    Link("PCIe 5.0 x16", 64),  # the same sheet: 128 GB/s, both directions together
    Link("PCIe 4.0 x16", 32),  # nvidia.com/en-us/data-center/a100: 64 GB/s, both directions together
)
NETWORKS = (
    Link("InfiniBand NDR, a port a GPU", 50),  # 400 Gb/s: nvidia.com/en-us/networking/infiniband-adapters
    Link("10 Gb/s Ethernet", 1.25),
)


def all_reduce_seconds(size: int, processes: int, link: Link) -> float:
    """Seconds to sum `size` bytes over the processes in a ring: 2 (N - 1) / N x size / bandwidth, without latency.

    Each sends N - 1 parts of size / N to sum them, and as many to share the sums (Patarasuk and Yuan 2009,
    doi.org/10.1016/j.jpdc.2008.09.002; nccl-tests, doc/PERFORMANCE.md).
    """
    return 2 * (processes - 1) / processes * size / (link.gigabytes * GB)


def bus_gigabytes(size: int, processes: int, seconds: float) -> float:
    """The bandwidth, in GB/s, at which a ring sums `size` bytes in so many seconds: see `all_reduce_seconds`."""
    return all_reduce_seconds(size, processes, Link("of 1 GB/s", 1)) / seconds


def efficiency(step_seconds: float, size: int, processes: int, link: Link) -> float:
    """The share of N times one GPU's samples a second that N GPUs reach, 0 to 1.

    Args:
        step_seconds: Of one GPU alone, for as many dialogues as each of the N has in a step. Where the effective batch
            is kept, that is 1 / N of it, and such a step is to be measured: it takes more than 1 / N of the time.
        size: Bytes of the gradients: 4 a trained weight.
        processes: N.
        link: The slowest in the ring: between two machines, the network.
    """
    return step_seconds / (step_seconds + all_reduce_seconds(size, processes, link))


def table(step_seconds: float, size: int, link: Link, network: Link, a_machine: int = 8) -> dict[str, float]:
    """How many times one GPU's samples a second 2, 4 and 8 GPUs of a machine, and two machines, reach.

    Args:
        step_seconds: See `efficiency`.
        size: See `efficiency`.
        link: Between the GPUs of a machine.
        network: Between two machines, for each GPU.
        a_machine: How many GPUs each of the two machines has.
    """
    found = {f"{number} GPUs": number * efficiency(step_seconds, size, number, link) for number in (2, 4, 8)}
    slowest = min(link, network, key=lambda one: one.gigabytes)
    both = 2 * a_machine
    return found | {f"2 machines of {a_machine}": both * efficiency(step_seconds, size, both, slowest)}


@dataclass(frozen=True)
class Comparison:
    """Measured training on several GPUs, beside one: records of module `benchmark`.

    `one` has the same effective batch; where one GPU could not hold it, it has `failed`. `share` is one GPU's training
    on as many dialogues as each of the several has in a step. Either is None where it was not measured.
    """

    several: Mapping[str, Any]
    one: Mapping[str, Any] | None
    share: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What was trained, and how."""
        return f"{title(self.several['model'])}, {self.several['method']}, {steps(self.several)}"

    @property
    def predicted(self) -> float | None:
        """Samples a second by `efficiency`, at the bandwidth that was measured.

        None where a step of one GPU's share was not measured, or weights are divided (what is exchanged then is not the
        gradients alone).
        """
        if "samples_per_second" not in (self.share or {}) or self.several["sharded"]:
            return None
        number = self.several["gpus"]
        link = Link("measured", self.several["bus_gigabytes"])
        size = 4 * self.several["trainable_parameters"]
        reached = efficiency(self.share["step_milliseconds"] / 1000, size, number, link)
        return number * self.share["samples_per_second"] * reached

    @property
    def times(self) -> float | None:
        """How many times one GPU's samples a second were reached, with the same effective batch."""
        if "samples_per_second" not in (self.one or {}):
            return None
        return self.several["samples_per_second"] / self.one["samples_per_second"]


def steps(record: Mapping[str, Any]) -> str:
    """How a record's steps were made: fast (compiled), plain, or with weights divided among the GPUs."""
    return "FSDP" if record.get("sharded") else "fast" if record["fast"] else "plain"


def comparisons(records: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """The records of training on several GPUs, each with those of one that belong to it.

    Args:
        records: By name, as `measured.records` reads them. What is behind an entry's name, `-batch16` and `-gpus2`,
            tells its records apart.
    """
    trained = [record for record in records.values() if {"gpus", "model", "batch_size"} <= record.keys()]

    def alone(like: Mapping[str, Any], parts: int) -> Mapping[str, Any] | None:
        wanted = (_entry(like), 1, like["batch_size"] // parts)
        found = (record for record in trained if (_entry(record), record["gpus"], record["batch_size"]) == wanted)
        return next(found, None)

    several = [record for record in trained if record["gpus"] > 1 and "failed" not in record]
    several.sort(key=lambda one: (one["model"], one["method"], not one["fast"], one["batch_size"], one["gpus"]))
    return [Comparison(record, alone(record, 1), alone(record, record["gpus"])) for record in several]


def _entry(record: Mapping[str, Any]) -> str:
    return re.sub(r"(-batch\d+)?(-gpus\d+)?$", "", record["name"])


def measured(found: Sequence[Comparison]) -> pd.DataFrame:
    """A row a comparison: samples a second on one GPU, on several and predicted, the exchange, and each card's peak."""
    rows = []
    for each in found:
        several, one = each.several, each.one or {}
        failed = "out of memory" if "failed" in one else None
        rows.append({
            "model": title(several["model"]),
            "run": several["method"],
            "batch": several["batch_size"],
            "steps": steps(several),
            "GPUs": several["gpus"],
            "samples/s on one": failed or _number(one.get("samples_per_second")),
            "samples/s": _number(several["samples_per_second"]),
            "times": _number(each.times, 2),
            "predicted": _number(each.predicted),
            "ms a step": _number(several["step_milliseconds"], 1),
            "share alone, ms": _number((each.share or {}).get("step_milliseconds"), 1),
            "exchange, ms": _number(several.get("all_reduce_milliseconds"), 2),
            "peak GiB on one": _gib(one.get("peak_memory_bytes_each", ())),
            "peak GiB each": _gib(several["peak_memory_bytes_each"]),
            "device": several["device"] + (f", {several['gib']:g} GiB of each" if "gib" in several else ""),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("model") if rows else pd.DataFrame()


def sentences(found: Sequence[Comparison]) -> list[str]:
    """Each comparison in plain English: what several GPUs bring, and the prediction beside it."""
    return [f"{each.name}: {_said(each)}" for each in found]


def _said(each: Comparison) -> str:
    several, one = each.several, each.one or {}
    gpus, rate = several["gpus"], several["samples_per_second"]
    if "failed" in one:
        room = f"{several['gib']:g} GiB of one GPU do" if "gib" in several else "one GPU does"
        return f"{room} not hold it; {gpus} GPUs train on {_number(rate)} samples a second."
    if each.times is None:
        return "not measured on one GPU."
    apart = max(abs(mine - theirs) for mine, theirs in zip(several["losses"], one["losses"], strict=True))
    said = f"{gpus} GPUs are {each.times:.2f} times as fast as one; losses differ by {apart:.4f} nats at most. "
    if each.predicted is None:
        unknown = "what divided weights exchange" if several["sharded"] else "a step of one GPU's share"
        return f"{said}Nothing is predicted: {unknown} was not measured."
    alone, whole = each.share["step_milliseconds"], one["step_milliseconds"]
    expected = each.predicted / one["samples_per_second"]
    return (
        f"{said}A GPU's share alone takes {alone:.1f} ms, the whole batch {whole:.1f}: with nothing to exchange "
        f"{whole / alone:.2f} times were the most. With the exchange {expected:.2f} times are predicted, of which "
        f"{rate / each.predicted:.0%} are reached."
    )


def _number(value: float | None, digits: int | None = None) -> str:
    """With so many digits; left to the size of the value where it is None."""
    return "–" if value is None else format(value, f".{(0 if value >= 20 else 1) if digits is None else digits}f")


def _gib(peaks: Sequence[int | None]) -> str:
    return _number(max((peak for peak in peaks if peak), default=0) / GIB or None, 1)
