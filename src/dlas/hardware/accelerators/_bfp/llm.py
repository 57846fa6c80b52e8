"""A whole language model on the block floating-point accelerator, counted from a GGUF file's metadata alone.

Generating text token by token is bound by the bus, because every weight is needed once per token; a prompt, whose
tokens go together, by the datapath.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.graph.formats.gguf import Contents, read_contents
from dlas.graph.weights import WeightTensor
from dlas.hardware.accelerator import Cycles
from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator
from dlas.hardware.accelerators._bfp.report import ProductCost, cost_of, refused
from dlas.hardware.synthesis.boards import Board, board_for
from dlas.hardware.synthesis.latency import cpu_time, latency

CLOCK_MHZ = 200.0  # of the published design
BOARD = "kv260"  # of F-BFQ
_TABLES = (
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
)  # rows are looked up, not multiplied
_OUTPUT = "output.weight"


@dataclass(frozen=True)
class OnCpu:
    """A tensor whose products stay on the CPU.

    Attributes:
        tensor: Its name.
        type: Storage type.
        macs: Multiply-accumulates per token.
        reason: Why.
    """

    tensor: str
    type: str
    macs: int
    reason: str


@dataclass(frozen=True)
class LlmReport:
    """A language model on the accelerator, by its tensors' types and shapes.

    Attributes:
        file: Name of the file.
        architecture: Family that the file names.
        accelerator: As it was chosen.
        board: What the CPU's part is estimated for.
        clock_mhz: Of the accelerator and the bus.
        tokens: How many are generated one by one, and how many a prompt has.
        products: Per product with one row of activations, in file order.
        prompt: The same with ``tokens`` rows together.
        on_cpu: Tensors that the accelerator does not take.
        switches: How often the format changes from one product to the next, in one token.
        figures: ``token_cycles``; per token ``accelerator_ms``, ``dma_ms``, ``cpu_ms`` and ``latency_ms``;
            ``generate_ms`` and ``prompt_ms`` of all tokens, ``tokens_per_s`` and ``prompt_tokens_per_s``;
            ``accelerated_macs`` (share) and ``bus_bound`` (share of a token's cycles in products that the bus bounds).
    """

    file: str
    architecture: str
    accelerator: str
    board: str
    clock_mhz: float
    tokens: int
    products: tuple[ProductCost, ...]
    prompt: tuple[ProductCost, ...]
    on_cpu: tuple[OnCpu, ...]
    switches: int
    figures: Mapping[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            **asdict(self),
            "products": [cost.to_dict() for cost in self.products],
            "prompt": [cost.to_dict() for cost in self.prompt],
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }


def llm_report(
    path: Path,
    accelerator: BfpAccelerator,
    *,
    tokens: int = 16,
    board: str = BOARD,
    clock_mhz: float = CLOCK_MHZ,
) -> LlmReport:
    """Count a GGUF model's matrix products; nothing is computed and the weights are not read.

    Attention among tokens, norms and sampling are no products with weights, and are not counted.

    Args:
        path: The file.
        accelerator: Which.
        tokens: How many are generated one by one, and how many a prompt has.
        board: Whose processor computes what the accelerator does not take.
        clock_mhz: Of the accelerator and the bus.

    Raises:
        ModelError: The file is damaged.
        UnsupportedError: The accelerator takes none of its tensors, or the board has no processor.
        UnknownNameError: There is no such board.
        OptionError: No tokens, or no clock.
    """
    if tokens < 1:
        raise OptionError("tokens", tokens, "at least 1")
    processor, contents = board_for(board), read_contents(path)
    products: list[ProductCost] = []
    prompt: list[ProductCost] = []
    on_cpu: list[OnCpu] = []
    for tensor, times in _multiplied(contents):
        outputs, reason = tensor.shape[-2], refused(tensor, accelerator)
        if reason:
            on_cpu.append(OnCpu(tensor.name, tensor.dtype, times * outputs * tensor.shape[-1], reason))
            continue
        products.append(cost_of(tensor, accelerator, outputs, 1, times))
        prompt.append(cost_of(tensor, accelerator, outputs, tokens, times))
    if not products:
        reasons = "; ".join(dict.fromkeys(entry.reason for entry in on_cpu)) or "it has no matrices"
        raise UnsupportedError(f"{accelerator.name} takes no tensor of {Path(path).name}: {reasons}")
    return LlmReport(
        Path(path).name,
        contents.weights.architecture,
        accelerator.spelled(),
        board,
        clock_mhz,
        tokens,
        tuple(products),
        tuple(prompt),
        tuple(on_cpu),
        sum(a.type != b.type for a, b in pairwise(products)),
        _figures(products, prompt, on_cpu, tokens, processor, clock_mhz),
    )


def _figures(
    products: list[ProductCost],
    prompt: list[ProductCost],
    on_cpu: list[OnCpu],
    tokens: int,
    board: Board,
    clock_mhz: float,
) -> dict[str, Figure]:
    one, together = (sum((cost.all_cycles for cost in of), Cycles()) for of in (products, prompt))
    rest = sum(entry.macs for entry in on_cpu)
    token = latency(one, cpu_time(rest, board), clock_mhz=clock_mhz)
    all_tokens = latency(together, cpu_time(tokens * rest, board), clock_mhz=clock_mhz).total.value
    bus = sum(cost.all_cycles.total for cost in products if cost.bound == "bus")
    note = "products with weights only"

    def estimated(value: float, unit: str) -> Figure:
        return Figure(value, unit, Source.ESTIMATED, note=note)

    return {
        "token_cycles": Figure(one.total, "cycles", Source.SIMULATED),
        **token.figures,
        "generate_ms": estimated(tokens * token.total.value, "ms"),
        "tokens_per_s": estimated(1e3 / token.total.value, "1/s"),
        "prompt_ms": estimated(all_tokens, "ms"),
        "prompt_tokens_per_s": estimated(1e3 * tokens / all_tokens, "1/s"),
        "accelerated_macs": Figure(one.macs / (one.macs + rest), "fraction", Source.ESTIMATED),
        "bus_bound": Figure(bus / one.total, "fraction", Source.SIMULATED),
    }


def _multiplied(contents: Contents) -> list[tuple[WeightTensor, int]]:
    """Tensors that every token is multiplied with, and how often: matrices, and the experts in use of a stack."""
    weights = contents.weights
    tied = all(t.name != _OUTPUT for t in weights.tensors)
    used = weights.metadata.get(f"{weights.architecture}.expert_used_count", 1)
    found = []
    for tensor in weights.tensors:
        if not tensor.name.endswith(".weight") or len(tensor.shape) not in (2, 3) or not tensor.size:
            continue
        if tensor.name in _TABLES and not (tied and tensor.name == _TABLES[0]):
            continue
        stacked = len(tensor.shape) == 3
        found.append((tensor, min(int(used), tensor.shape[0]) if stacked else 1))
    return found
