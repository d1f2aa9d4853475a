"""What more GPUs can bring: a prediction from a measured step and the bytes of gradients that are exchanged.

A model of the best case, to be held against measurements: nothing but the exchange is added to a step, whole and behind
it, as `fast.average_gradients` does it (DDP hides a part behind the backward pass).
"""

from dataclasses import dataclass

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
