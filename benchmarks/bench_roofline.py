"""The limits of this processor, and whether measuring them again gives the same.

Claim: two measurements of one thread differ by less than 10 %. The figures that the design was made with, taken on a
Sapphire Rapids server, stand beside them: on another processor they are for orientation only.
"""

from __future__ import annotations

import sys

from _common import Row, finish, parser, progress

# One thread and two of a virtual Sapphire Rapids: GFLOP/s, GOP/s and GB/s.
DESIGN_CPU = "Sapphire Rapids"
DESIGN = {
    "fp32": (249, 495), "int8": (661, 1320), "int8_acc16": (332, 663), "amx_int8": (7590, 15200),
    "amx_bf16": (3800, 7590), "l1": (298, 595), "l2": (194, 377), "l3": (29, 58), "dram": (14, 28),
}  # fmt: skip
LIMIT = 0.10


def main() -> int:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    given = options.parse_args()
    from dlas.core.environment import cpu_flags, cpu_model, usable_cores
    from dlas.hardware.cpu.roofline import roofline

    same = {"amx_int8", "avx512_vnni"} <= cpu_flags()
    progress(f"{cpu_model()}: {'perhaps the' if same else 'not the'} processor of the design ({DESIGN_CPU})")
    rows, details = [], []
    for threads in range(1, min(2, usable_cores()) + 1):
        first, second = (roofline(threads, fresh=True, seconds=given.seconds) for _ in range(2))
        pairs = [
            (name, part[name], again[name])
            for part, again in ((first.peaks, second.peaks), (first.bandwidths, second.bandwidths))
            for name in part
        ]
        for name, one, two in pairs:
            design = DESIGN[name][threads - 1]
            ratio = two.value / one.value
            # Several threads are timed by the wall clock, which says little on a busy machine.
            holds = threads > 1 or abs(ratio - 1) <= LIMIT
            rows.append(
                Row(
                    f"{name}, {threads} thread(s)",
                    f"{one.value:.1f} {one.unit}",
                    f"again (design {design:g})",
                    ratio,
                    None,
                    None,
                    2,
                    f"within {LIMIT:.0%}" if threads == 1 else "",
                    holds,
                )
            )
            details.append(
                {"name": name, "threads": threads, "value": one.value, "again": two.value, "design": design}
            )
    return finish(f"Limits of {cpu_model()} ({first.isa})", rows, given.json, details)


if __name__ == "__main__":
    sys.exit(main())
