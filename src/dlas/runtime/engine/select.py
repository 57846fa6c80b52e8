"""Which kernel computes which call, in which layouts.

Every call has candidates: kernels with their forms, and delegates (another engine). The cheapest whole is searched
over the calls in order, where a state is which values exist in which layouts; turning a value into another layout
costs, once per value and layout. With at most ``BEAM`` states at a time that is exact, beyond it a beam search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlas.core.errors import OptionError, UnknownNameError, UnsupportedError
from dlas.kernels.kernel import Context, Form, Kernel, Node, kernels
from dlas.kernels.layout import Layout
from dlas.runtime.engine.delegate import DELEGATES, delegate_refuses
from dlas.runtime.engine.network import Call, Network

BEAM = 64
_REORDER_OVERHEAD_S = 1e-6
_REORDER_S_PER_BYTE = 2.5e-10
_ALIAS_S = 1e-8
_DELEGATE_S = 30e-6  # entering another engine: its own dispatch and the copies
FALLBACK = "onnxruntime"


@dataclass(frozen=True)
class Choice:
    """What computes one call.

    Attributes:
        name: Name of a kernel or delegate; empty for an alias.
        form: Its layouts.
        kernel: The kernel, None for delegates and aliases.
        seconds: What it is believed to cost.
    """

    name: str
    form: Form
    kernel: Kernel | None
    seconds: float


Cost = Callable[[Call, Kernel, Form], float]


@dataclass(frozen=True)
class Rule:
    """``Conv=gspc`` or ``node:/layer1/conv=onnxruntime``.

    Attributes:
        node: Name of one node, or empty.
        op: Operator, or empty.
        name: Kernel or delegate to use.
    """

    node: str
    op: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read a rule.

        Raises:
            OptionError: It has another form.
            UnknownNameError: There is no such kernel or delegate.
        """
        left, found, name = text.rpartition("=")
        if not found or not left or not name:
            raise OptionError("impl", text, "OP=NAME or node:NAME=NAME, such as Conv=gspc")
        known = [*kernels.names(), *DELEGATES]
        name = {"ort": "onnxruntime", "ref": "reference"}.get(name, name)
        if name not in known:
            raise UnknownNameError("kernel", name, known, "`dlas list kernels` shows every kernel")
        node = left.removeprefix("node:") if left.startswith("node:") else ""
        return cls(node, "" if node else left, name)

    def covers(self, call: Call) -> bool:
        """Whether it speaks of this call."""
        return call.node.name == self.node if self.node else call.node.op == self.op


def kernels_for(op: str, context: Context) -> list[Kernel]:
    """Every kernel of an operator that this machine can use."""
    if context.isa == "numpy":
        return []
    return [member() for _, member in kernels.members() if op in member.ops and not member.missing()]


def candidates(
    network: Network,
    context: Context,
    rules: Sequence[Rule] = (),
    *,
    exact: bool = False,
    cost: Cost | None = None,
) -> list[list[Choice]]:
    """What could compute each call, in the network's order.

    Args:
        network: The network.
        context: Machine.
        rules: The last rule that covers a call and whose kernel can compute it decides; a rule that no call can
            follow is an error.
        exact: Leave out kernels whose results differ by more than rounding.
        cost: Seconds of a kernel on a call; the kernels' own estimates unless given.

    Raises:
        UnsupportedError: Nothing can compute a call; all such operators are listed with their counts.
    """
    unused = [rule for rule in rules if not any(rule.covers(call) for call in network.calls)]
    if unused:
        rule = unused[0]
        have = sorted({c.node.name if rule.node else c.node.op for c in network.calls})
        raise UnknownNameError("node" if rule.node else "operator", rule.node or rule.op, have)
    by_op: dict[str, list[Kernel]] = {}
    found: list[list[Choice]] = []
    stuck: dict[str, int] = {}
    declined: dict[Rule, str] = {}
    followed: set[Rule] = set()
    for call in network.calls:
        if call.is_alias:
            found.append([_alias(call)])
            continue
        op = call.node.op
        if op not in by_op:
            by_op[op] = kernels_for(op, context)
        members = by_op[op]
        choices = _choices(call, members, context, exact, cost)
        for rule in (rule for rule in reversed(rules) if rule.covers(call)):
            held, reason = _held(call, rule, members, context, cost)
            if held:
                followed.add(rule)
                choices = held
                break
            declined.setdefault(rule, f"{rule.name} cannot compute {op} {call.name!r}: {reason}")
        if not choices:
            stuck[op] = stuck.get(op, 0) + 1
        found.append(choices)
    for rule, reason in declined.items():
        if rule not in followed:
            raise UnsupportedError(reason, "`dlas list kernels` shows what there is")
    if stuck:
        listed = ", ".join(f"{op} ({count})" for op, count in sorted(stuck.items()))
        raise UnsupportedError(
            f"the engine cannot compute {listed}", "`dlas bench MODEL` shows which back ends take the network"
        )
    return found


def named(call: Call, name: str, context: Context) -> list[Choice]:
    """The choices of one call for the kernel or delegate ``name`` (empty for an alias); none where it cannot."""
    if call.is_alias or not name:
        return [_alias(call)] if call.is_alias and not name else []
    rule = Rule("", call.node.op, name)
    return _held(call, rule, kernels_for(call.node.op, context), context, None)[0]


def _alias(call: Call) -> Choice:
    return Choice("", Form.all(call.node, Layout.PLAIN), None, _ALIAS_S)


def _choices(
    call: Call, members: Sequence[Kernel], context: Context, exact: bool, cost: Cost | None
) -> list[Choice]:
    """Every kernel that takes the call; another engine only where there is none."""
    choices: list[Choice] = []
    for kernel in members:
        if (kernel.exact or not exact) and not kernel.refuses(call.node, context):
            choices += _forms(call, kernel, context, cost)
    if choices:
        return choices
    for name in (FALLBACK, "reference"):
        if not delegate_refuses(name, call):
            return [_delegated(name, call)]
    return []


def _held(
    call: Call, rule: Rule, members: Sequence[Kernel], context: Context, cost: Cost | None
) -> tuple[list[Choice], str]:
    """What a rule leaves of the choices for a call, or why it leaves nothing."""
    if rule.name in DELEGATES:
        reason = delegate_refuses(rule.name, call)
        return ([] if reason else [_delegated(rule.name, call)]), reason
    kernel = next((k for k in members if k.name == rule.name), None)
    if kernel is None:
        return [], f"it does not compute {call.node.op}"
    reason = kernel.refuses(call.node, context)
    return ([] if reason else _forms(call, kernel, context, cost)), reason


def _forms(call: Call, kernel: Kernel, context: Context, cost: Cost | None) -> list[Choice]:
    found = []
    for form in kernel.forms(call.node, context):
        seconds = kernel.cost(call.node, form, context) if cost is None else cost(call, kernel, form)
        if math.isfinite(seconds):
            found.append(Choice(kernel.name, form, kernel, seconds))
    return found


def _delegated(name: str, call: Call) -> Choice:
    return Choice(name, Form.all(call.node, Layout.PLAIN), None, _delegate_seconds(call.node))


def _delegate_seconds(node: Node) -> float:
    return _DELEGATE_S + (node.macs or node.output.size) / 2e10


@dataclass
class _State:
    seconds: float
    picks: tuple[int, ...]


def choose(network: Network, options: Sequence[Sequence[Choice]]) -> list[Choice]:
    """The cheapest choice for every call, with the costs of changing layouts."""
    last = {name: places[-1] for name, places in network.readers.items()}
    for name in network.outputs:
        last[name] = len(network.calls)
    operands = network.operands
    states: dict[frozenset[tuple[str, Layout]], _State] = {
        frozenset((name, Layout.PLAIN) for name in network.inputs): _State(0.0, ())
    }
    for place, (call, choices) in enumerate(zip(network.calls, options, strict=True)):
        following: dict[frozenset[tuple[str, Layout]], _State] = {}
        for have, state in states.items():
            for pick, choice in enumerate(choices):
                seconds, made = state.seconds + choice.seconds, set(have)
                for value, layout in _needs(call, choice):
                    if (value, layout) not in made:
                        seconds += _REORDER_OVERHEAD_S + _REORDER_S_PER_BYTE * operands[value].nbytes
                        made.add((value, layout))
                made.update(zip(call.outputs, choice.form.outputs, strict=True))
                alive = frozenset(pair for pair in made if last.get(pair[0], -1) > place)
                known = following.get(alive)
                if known is None or seconds < known.seconds:
                    following[alive] = _State(seconds, (*state.picks, pick))
        states = dict(sorted(following.items(), key=lambda item: item[1].seconds)[:BEAM])
    best = min(
        (
            state.seconds
            + sum(
                _REORDER_S_PER_BYTE * operands[n].nbytes
                for n in network.outputs
                if (n, Layout.PLAIN) not in have
            ),
            state.picks,
        )
        for have, state in states.items()
    )
    return [choices[pick] for choices, pick in zip(options, best[1], strict=True)]


def _needs(call: Call, choice: Choice) -> list[tuple[str, Layout]]:
    """Values a choice reads, each in the layout it wants."""
    found = []
    for name, operand, layout in zip(call.inputs, call.node.inputs, choice.form.inputs, strict=True):
        if operand is not None and operand.constant is None:
            found.append((name, layout))
    return found
