"""What more GPUs can bring: a prediction from a measured step and the bytes of gradients that are exchanged.

A model of the best case, to be held against measurements: nothing but the exchange is added to a step, whole and behind
it, as `parallel.average_gradients` does it (DDP hides a part behind the backward pass). `measured` holds it against the
records of module `benchmark`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

GB = 1e9
GIB = 1 << 30


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
        model = {"smollm2": "SmolLM2-135M"}.get(self.several["model"], f"{self.several['model'].upper()}'s shape")
        return f"{model}, {self.several['method']}, {steps_of(self.several)}"

    def predicted(self, link: Link | None = None) -> float | None:
        """Samples a second by `efficiency`, over a link or, where it is None, at the bandwidth that was measured.

        None where a step of one GPU's share was not measured, or weights are divided (what is exchanged then is not the
        gradients alone).
        """
        if self.share is None or self.several["sharded"]:
            return None
        number = self.several["gpus"]
        link = link or Link("measured", self.several["bus_gigabytes"])
        size = 4 * self.several["trainable_parameters"]
        reached = efficiency(self.share["step_milliseconds"] / 1000, size, number, link)
        return number * self.share["samples_per_second"] * reached

    @property
    def times(self) -> float | None:
        """How many times one GPU's samples a second were reached, with the same effective batch."""
        if self.one is None or "failed" in self.one:
            return None
        return self.several["samples_per_second"] / self.one["samples_per_second"]


def steps_of(record: Mapping[str, Any]) -> str:
    """How a record's steps were made: fast (compiled), plain, or with weights divided among the GPUs."""
    return "FSDP" if record["sharded"] else "fast" if record["fast"] else "plain"


def comparisons(folder: Path) -> list[Comparison]:
    """The records of training on several GPUs in a folder, each with those of one that belong to it."""
    records = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    trained = [record for record in records if "gpus" in record and "model" in record]

    def alone(like: Mapping[str, Any], batch_size: int) -> Mapping[str, Any] | None:
        for record in trained:
            same = all(record[name] == like[name] for name in ("model", "method"))
            same = same and record.get("fast", False) == like["fast"] and record.get("gib") == like.get("gib")
            if same and record["gpus"] == 1 and record["batch_size"] == batch_size:
                return record
        return None

    several = [record for record in trained if record["gpus"] > 1 and "failed" not in record]
    return [
        Comparison(record, alone(record, record["batch_size"]), alone(record, record["batch_size"] // record["gpus"]))
        for record in sorted(several, key=lambda one: (one["model"], one["method"], not one["fast"], one["batch_size"]))
    ]


def measured(found: Sequence[Comparison]) -> pd.DataFrame:
    """A row a comparison: samples a second measured and predicted, the exchange, and each card's peak."""
    rows = []
    for each in found:
        several, one = each.several, each.one
        alone = "–" if one is None else "out of memory" if "failed" in one else f"{one['samples_per_second']:.0f}"
        peaks = [peak / GIB for peak in several["peak_memory_bytes_each"] if peak]
        rows.append({
            "trained": each.name,
            "batch": several["batch_size"],
            "GPUs": several["gpus"],
            "samples/s, 1 GPU": alone,
            "samples/s": f"{several['samples_per_second']:.{0 if several['samples_per_second'] >= 100 else 1}f}",
            "times": "–" if each.times is None else f"{each.times:.2f}",
            "predicted": _number(each.predicted(), ".0f"),
            "at NVLink's peak": _number(each.predicted(LINKS[0]), ".0f"),
            "exchange ms": _number(several.get("all_reduce_milliseconds"), ".2f"),
            "GB/s": _number(several.get("bus_gigabytes"), ".0f"),
            "peak GiB a card": ", ".join(f"{peak:.1f}" for peak in peaks),
            "one card": "–" if one is None or "failed" in one else f"{one['peak_memory_bytes'] / GIB:.1f}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("trained")


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
