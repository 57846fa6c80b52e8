"""The storage types of ggml tensors: how many elements form a block and how many bytes a block takes.

Numbers are those of the ``ggml_type`` enumeration; block sizes follow the structures of ``ggml-common.h``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """One storage type.

    Attributes:
        name: ggml's word for it.
        block: Elements per block, along the fastest axis.
        nbytes: Bytes per block, scales included.
        numpy: NumPy code of one element in its own byte order (``f4``); empty for types that must be decoded.
    """

    name: str
    block: int
    nbytes: int
    numpy: str = ""


_PLAIN = (
    (0, "F32", "f4"),
    (1, "F16", "f2"),
    (24, "I8", "i1"),
    (25, "I16", "i2"),
    (26, "I32", "i4"),
    (27, "I64", "i8"),
    (28, "F64", "f8"),
)
_BLOCKS = (
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    # Rows interleaved for one processor; ggml stopped reading them in 2024, files with them still go round.
    (31, "Q4_0_4_4", 32, 18),
    (32, "Q4_0_4_8", 32, 18),
    (33, "Q4_0_8_8", 32, 18),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (36, "IQ4_NL_4_4", 32, 18),
    (37, "IQ4_NL_4_8", 32, 18),
    (38, "IQ4_NL_8_8", 32, 18),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)

TYPES: dict[int, BlockType] = {
    **{number: BlockType(name, 1, int(code[1]), code) for number, name, code in _PLAIN},
    **{number: BlockType(name, block, nbytes) for number, name, block, nbytes in _BLOCKS},
}
