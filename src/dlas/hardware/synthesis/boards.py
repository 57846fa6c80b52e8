"""Boards, and whether a design fits one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlas.core.errors import OptionError, UnknownNameError
from dlas.hardware.synthesis.area import Area

LUT_DERATING = 0.8  # a device this full still routes; an assumption
_RESOURCES = ("luts", "flip_flops", "bram_tiles", "dsps")


@dataclass(frozen=True)
class Board:
    """What a board offers.

    Attributes:
        name: As given on the command line.
        title: What it is sold as, and its part.
        family: Family whose cells count; see :class:`~dlas.hardware.synthesis.area.Area`.
        luts: Look-up tables.
        flip_flops: Flip-flops.
        bram_tiles: Blocks of 36 kbit on Xilinx, of 18 kbit on ECP5.
        dsps: Multiplier blocks.
        cpu: Its processor; empty if it has none.
        cpu_cores: Cores.
        cpu_mhz: Clock of the processor.
        cpu_macs_per_cycle: int8 multiply-accumulates per core and cycle in convolutions, an assumption.
        note: What a reader must know.
    """

    name: str
    title: str
    family: str
    luts: int
    flip_flops: int
    bram_tiles: int
    dsps: int
    cpu: str = ""
    cpu_cores: int = 0
    cpu_mhz: float = 0.0
    cpu_macs_per_cycle: float = 0.0
    note: str = ""


_ZYNQ = ("xc7", 53_200, 106_400, 140, 220, "Cortex-A9", 2, 650.0, 2.0)
BOARDS = {
    board.name: board
    for board in (
        Board("pynq-z1", "PYNQ-Z1 (xc7z020)", *_ZYNQ),
        Board("pynq-z2", "PYNQ-Z2 (xc7z020)", *_ZYNQ),
        Board(
            "kv260", "Kria KV260 (K26)", "xc7", 117_120, 234_240, 144, 1_248, "Cortex-A53", 4, 1333.0, 4.0,
            "UltraScale+, judged by the counts for 7 series, whose LUTs are alike; its 64 UltraRAM blocks are not used",
        ),
        Board("ecp5-85", "Lattice ECP5-85", "ecp5", 83_640, 83_640, 208, 156),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Whether a design fits a board.

    Attributes:
        board: Which.
        area: The design.
        shares: Resource to the share of it that the design takes; for LUTs of those that can be used.
    """

    board: Board
    area: Area
    shares: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether every share is at most one."""
        return all(share <= 1 for share in self.shares.values())

    @property
    def reason(self) -> str:
        """What there is not enough of, or an empty string."""
        over = []
        for name, share in self.shares.items():
            if share > 1:
                needed, usable = _needed(self.area, name), _usable(self.board, name)
                over.append(f"{needed:g} {name.replace('_', ' ')}, {usable:g} can be used")
        return "; ".join(over)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "board": self.board.name,
            "title": self.board.title,
            "fits": self.fits,
            "reason": self.reason,
            "shares": self.shares,
            "lut_derating": LUT_DERATING,
            "note": self.board.note,
        }


def board_for(name: str) -> Board:
    """A board by its name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in BOARDS:
        raise UnknownNameError("board", name, BOARDS)
    return BOARDS[name]


def fits(area: Area, board: Board | str) -> Fit:
    """Compare a design with a board.

    Args:
        area: Of the board's family of cells.
        board: The board, or its name.

    Raises:
        UnknownNameError: There is no such board.
        OptionError: The area is of another family.
    """
    if isinstance(board, str):
        board = board_for(board)
    if area.family != board.family:
        raise OptionError("area", area.family, f"the area in cells of {board.family}, for {board.title}")
    shares = {name: _needed(area, name) / _usable(board, name) for name in _RESOURCES}
    return Fit(board, area, shares)


def _needed(area: Area, name: str) -> float:
    return getattr(area, name) + (area.memory_luts if name == "luts" else 0)


def _usable(board: Board, name: str) -> float:
    return getattr(board, name) * (LUT_DERATING if name == "luts" else 1)
