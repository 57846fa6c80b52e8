"""Mutations of tensor programs: what they do to the script, and which of them would leave a buffer. No TVM needed."""

from __future__ import annotations

import ast

import pytest

from dlas.core.errors import ModelError, UnknownNameError
from dlas.verify.mutate.bounds import out_of_bounds
from dlas.verify.mutate.mutation import ProgramMutation, Site, mutation_for, mutations
from dlas.verify.mutate.script import Program

PAD = """
# from tvm.script import tirx as T

@T.prim_func(private=True, s_tir=True)
def main(A: T.Buffer((T.int64(1), T.int64(16), T.int64(8)), "float32"), P: T.Buffer((T.int64(1), T.int64(32), T.int64(8)), "float32")):
    T.func_attr({"tirx.noalias": True})
    # with T.sblock("root"):
    for i0, i1, i2 in T.grid(T.int64(1), T.int64(32), T.int64(8)):
        with T.sblock("P"):
            v_i0, v_i1, v_i2 = T.axis.remap("SSS", [i0, i1, i2])
            T.reads(A[v_i0, v_i1 - T.int64(8), v_i2])
            T.writes(P[v_i0, v_i1, v_i2])
            P[v_i0, v_i1, v_i2] = T.if_then_else(T.int64(8) <= v_i1 and v_i1 < T.int64(24), A[v_i0, v_i1 - T.int64(8), v_i2], T.float32(0.0))
"""  # noqa: E501
SUM = """
@T.prim_func(private=True, s_tir=True)
def main(A: T.Buffer((T.int64(4), T.int64(6)), "float32"), C: T.Buffer((T.int64(4),), "float32"), N: T.Buffer((T.int64(4),), "int32")):
    for i, k in T.grid(T.int64(4), T.int64(6)):
        with T.sblock("C"):
            v_i, v_k = T.axis.remap("SR", [i, k])
            T.reads(A[v_i, v_k])
            T.writes(C[v_i])
            with T.init():
                C[v_i] = T.float32(0.0)
            C[v_i] = C[v_i] + T.max(A[v_i, v_k], T.float32(0.0))
    for i in range(T.int64(4)):
        with T.sblock("N"):
            v_i = T.axis.spatial(T.int64(4), i)
            T.reads(C[v_i])
            T.writes(N[v_i])
            N[v_i] = T.Cast("int32", T.Select(C[v_i] > T.float32(2.0), C[v_i], T.float32(1.0)))
"""  # noqa: E501
PROGRAMS = {"pad": PAD, "sum": SUM}


def program_mutation(choice: str) -> ProgramMutation:
    found = mutation_for(choice)
    assert isinstance(found, ProgramMutation)
    return found


def changed(choice: str, script: str, at: int = 0) -> str:
    mutation = program_mutation(choice)
    return mutation.apply(script, mutation.sites({"it": script})[at])


def lines(script: str) -> set[str]:
    return set(Program.parse(script).text().splitlines())


@pytest.mark.parametrize(
    ("choice", "script", "line"),
    [
        ("store-type:dtype=int8", SUM, 'C[v_i] = T.Cast("float32", T.Cast("int8", T.float32(0.0)))'),
        ("store-value:change=subtract", SUM, "C[v_i] = T.float32(0.0) - T.float32(1e-08)"),
        ("store-value:change=scale", SUM, "C[v_i] = T.float32(0.0) * T.float32(1.00000001)"),
        ("accumulator-start", SUM, "C[v_i] = T.float32(0.001)"),
        ("max-to-min", SUM, "C[v_i] = C[v_i] + T.min(A[v_i, v_k], T.float32(0.0))"),
        ("shorten-loop", SUM, "for i, k in T.grid(T.int64(3), T.int64(6)):"),
        (
            "replace-condition:change=greater-to-less",
            SUM,
            'N[v_i] = T.Cast("int32", T.Select(C[v_i] < T.float32(2.0), C[v_i], T.float32(1.0)))',
        ),
        (
            "replace-condition:change=less-to-greater",
            PAD,
            "P[v_i0, v_i1, v_i2] = T.if_then_else(T.int64(8) <= v_i1 and v_i1 > T.int64(24), "
            "A[v_i0, v_i1 - T.int64(8), v_i2], T.float32(0.0))",
        ),
        (
            "shift-threshold",
            PAD,
            "P[v_i0, v_i1, v_i2] = T.if_then_else(T.int64(8) <= v_i1 and "
            'T.Cast("float32", v_i1) < T.Cast("float32", T.int64(24)) + T.float32(0.5), '
            "A[v_i0, v_i1 - T.int64(8), v_i2], T.float32(0.0))",
        ),
    ],
)
def test_what_a_mutation_writes(choice: str, script: str, line: str) -> None:
    mutant = changed(choice, script)
    fresh = lines(mutant) - lines(script)
    assert len(fresh) == 1
    assert ast.dump(ast.parse(fresh.pop().strip() + (" pass" if line.endswith(":") else ""))) == ast.dump(
        ast.parse(line + (" pass" if line.endswith(":") else ""))
    )


def test_an_index_is_held_inside_its_buffer() -> None:
    mutant = changed("shift-index", PAD, at=0)  # axis 1, +1
    assert "T.min(v_i1 - T.int64(8) + T.int64(1), T.int64(15))" in mutant
    assert "T.reads" not in mutant
    mutant = changed("shift-index", PAD, at=1)
    assert "T.max(v_i1 - T.int64(8) - T.int64(1), T.int64(0))" in mutant
    sites = program_mutation("shift-index").sites({"pad": PAD})
    assert [s.detail.split(" A[")[0] for s in sites] == ["axis 1 +1", "axis 1 -1", "axis 2 +1", "axis 2 -1"]


def test_sites_are_in_order_and_say_what_they_are() -> None:
    assert [str(s) for s in program_mutation("store-type:dtype=int16").sites(PROGRAMS)][1:] == [
        "sum (int16 C[v_i] = T.float32(0.0) #0)",
        "sum (int16 C[v_i] = C[v_i] + T.max(A[v_i, v_k], T.float32(0.0)) #1)",  # and not the store of integers
    ]
    conditions = program_mutation("replace-condition").sites(PROGRAMS)
    assert [(s.node, s.detail.split()[0]) for s in conditions] == [
        ("pad", "less-equal-to-less"),
        ("pad", "less-to-less-equal"),
        ("pad", "less-to-greater"),
        ("sum", "greater-to-less"),
        ("sum", "greater-to-greater-equal"),
    ]


def test_every_program_mutation_changes_every_place_it_names() -> None:
    for name, member in mutations.members():
        if member.level != "program":
            continue
        mutation = program_mutation(name)
        sites = mutation.sites(PROGRAMS)
        assert sites, name
        for site in sites:
            assert lines(mutation.apply(PROGRAMS[site.node], site)) != lines(PROGRAMS[site.node]), str(site)


def test_a_place_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="unknown place"):
        program_mutation("max-to-min").apply(SUM, Site("sum", "#7"))
    with pytest.raises(ModelError, match="cannot be read"):
        Program.parse("def (")
    with pytest.raises(ModelError, match="0 functions"):
        Program.parse("x = 1")


def test_sound_programs_stay_inside_their_buffers() -> None:
    assert out_of_bounds(PAD) == ""
    assert out_of_bounds(SUM) == ""


@pytest.mark.parametrize(
    ("choice", "script", "found"),
    [
        ("shift-threshold", PAD, "reaches 0 to 16 on axis 1 of size 16"),
        ("replace-condition:change=less-to-less-equal", PAD, "reaches 0 to 16 on axis 1 of size 16"),
        ("replace-condition:change=less-to-greater", PAD, "reaches 17 to 23 on axis 1 of size 16"),
        ("replace-condition:change=less-equal-to-less", PAD, ""),  # it pads one more, and reads one less
        ("shorten-loop", SUM, ""),
    ],
)
def test_mutants_that_leave_their_buffers_are_known(choice: str, script: str, found: str) -> None:
    assert out_of_bounds(changed(choice, script)).endswith(found)
    assert bool(out_of_bounds(changed(choice, script))) == bool(found)


def test_shifted_indices_never_leave_their_buffers() -> None:
    mutation = program_mutation("shift-index")
    for site in mutation.sites(PROGRAMS):
        assert out_of_bounds(mutation.apply(PROGRAMS[site.node], site)) == ""


def body(statements: str) -> str:
    text = "".join(f"    {line}\n" for line in statements.splitlines())
    return f'def main(A: T.Buffer((8, 4), "float32"), B: T.Buffer((8,), "float32")):\n{text}'


@pytest.mark.parametrize(
    ("statements", "outside"),
    [
        ("for i in range(8):\n    B[i] = A[i, 0]", False),
        ("for i in range(9):\n    B[i] = A[0, 0]", True),
        ("for i in range(4):\n    B[i * 2 + 1] = A[i, i]", False),
        ("for i in range(4):\n    B[i * 2 + 2] = A[i, i]", True),
        ("for i in range(32):\n    B[i // 4] = A[i // 4, i % 4]", False),
        ("for i in range(32):\n    B[i // 3] = A[0, 0]", True),
        ("for i in range(9):\n    if i < 8:\n        B[i] = A[i, 0]", False),
        ("for i in range(9):\n    if i + 1 < 9:\n        B[i] = A[i, 0]", False),
        ("for i in range(9):\n    if 1 <= i:\n        B[i - 1] = A[i - 1, 0]", False),
        ("for i in range(9):\n    if 0 <= i:\n        B[i - 1] = A[0, 0]", True),
        ("for i in range(9):\n    if i > 20:\n        B[i + 50] = A[0, 0]", False),  # never runs
        ("for i in range(9):\n    B[T.min(i, 7)] = A[T.max(i - 5, 0), 0]", False),
        ("for i in range(2, 9):\n    B[i - 1] = A[0, 0]", False),
        ("for i in range(2, 10):\n    B[i - 1] = A[0, 0]", True),
        (
            "for i in range(8):\n    B[i] = T.Select(i < 3, A[i, i], T.float32(0))",
            True,
        ),  # both sides are computed
        ("for i in range(8):\n    B[i] = T.if_then_else(T.And(i < 4, i > 0), A[i, i], T.float32(0))", False),
        ("for i in range(8):\n    B[i] = A[n, 0]", False),  # nothing is known of n
    ],
)
def test_ranges_of_indices(statements: str, outside: bool) -> None:
    assert bool(out_of_bounds(body(statements))) is outside
