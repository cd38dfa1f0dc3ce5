"""Known GPUs: their memory, the speed of a model on them, and how many of its trials share one.

All of it is arithmetic from published figures; nothing asks a device."""

from collections.abc import Mapping
from dataclasses import dataclass

from medray.runtime.cluster import Cluster

_UTILIZATION = 0.4  # of the published speed, in matrix products of large models
# Operations between matrix products read and write numbers, whose count grows with the width of a
# model as that of products does with its square. Fitted to simulated steps of five models.
_PRODUCTS_PER_BYTE = 0.042
_LAUNCH_S = 8e-6  # of the host, per kernel
_KERNELS_PER_LAYER = {"encoder": 167, "decoder": 263}  # in a forward and a backward pass
_MOST_TRIALS = 8
USABLE = 0.9  # of the memory; the rest is lost to fragmentation


@dataclass(frozen=True)
class Card:
    """A GPU, by published figures."""

    memory_gb: float
    tflops: float  # dense products in 16 bits
    tb_per_s: float  # of its memory

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    def tflops_at(self, width: int) -> float:
        """Return the speed of a model with this hidden size, in 10^12 operations per second."""
        products = _UTILIZATION * self.tflops
        rest = _PRODUCTS_PER_BYTE * self.tb_per_s * width
        return 1 / (1 / products + 1 / rest)


# Named as Ray names them. Of cards with several sizes of memory, Ray's name means the smaller one.
CARDS: Mapping[str, Card] = {
    "T4": Card(16, 65, 0.32),
    "V100": Card(16, 125, 0.9),
    "A10G": Card(24, 125, 0.6),
    "L4": Card(24, 121, 0.3),
    "GeForce-RTX-4090": Card(24, 165, 1.0),
    "L40S": Card(48, 362, 0.86),
    "A100": Card(40, 312, 1.55),
    "A100-80G": Card(80, 312, 2.0),
    "H100": Card(80, 990, 3.35),
    "H200": Card(141, 990, 4.8),
    "B200": Card(180, 2250, 8.0),
}


@dataclass(frozen=True)
class BatchSeconds:
    """The seconds of a micro-batch: of the GPU's arithmetic, and of the host that launches it.

    The longer of the two decides. Trials that share a GPU launch side by side."""

    gpu: float
    host: float

    def of_trials(self, num_sharing: int) -> float:
        """Return the seconds of a micro-batch of each of several trials on a GPU."""
        return max(self.host, num_sharing * self.gpu)


def batch_seconds(
    card: Card, operations: float, *, width: int, num_layers: int, is_encoder: bool
) -> BatchSeconds:
    kernels = num_layers * _KERNELS_PER_LAYER["encoder" if is_encoder else "decoder"]
    return BatchSeconds(operations / (card.tflops_at(width) * 1e12), kernels * _LAUNCH_S)


def trials_per_gpu(card: Card, seconds: BatchSeconds, worker_bytes: int) -> int:
    """Return the number of trials that share a GPU: as many as its memory holds, and as leave it
    idle one by one. A base model that fills a card, or keeps it busy, has it alone."""
    by_memory = int(USABLE * card.memory_bytes / worker_bytes)
    by_time = int(seconds.host / seconds.gpu)
    return max(1, min(_MOST_TRIALS, by_memory, by_time))


def card_of(cluster: Cluster) -> Card | None:
    """Return the card of a cluster's GPUs, or None where they are unknown or differ."""
    names = {node.card for node in cluster.nodes if node.gpus}
    name = next(iter(names)) if len(names) == 1 else None
    return CARDS.get(name) if name else None
