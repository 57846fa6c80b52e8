"""The engine itself: a Model and options in, something that runs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlas.core.errors import OptionError
from dlas.graph.model import Model
from dlas.kernels.kernel import Context
from dlas.kernels.plugins import load_plugin
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import Executable
from dlas.runtime.engine.executable import EngineExecutable
from dlas.runtime.engine.lower import lower
from dlas.runtime.engine.network import Network
from dlas.runtime.engine.passes import run_passes
from dlas.runtime.engine.plan import Plan, machine
from dlas.runtime.engine.program import Program
from dlas.runtime.engine.quantized import lower_quantized
from dlas.runtime.engine.select import Choice, Rule, candidates, choose

if TYPE_CHECKING:
    from dlas.runtime.backends.engine import EngineOptions


def make(model: Model, signature: Signature, options: EngineOptions, isa: str, threads: int) -> Executable:
    """An Executable for ``model`` by the policy of the options.

    Raises:
        UnsupportedError: An operator that nothing here computes.
        ModelError: The plan is of another network.
        OptionError: A rule has another form than ``OP=NAME``.
    """
    for path in _split(options.plugin):
        load_plugin(path)
    context = Context.here(threads, isa)
    network = prepared(
        model, batch=signature.batch, without=_split(options.without), rounding=options.rounding
    )
    rules = [Rule.parse(text) for text in _split(options.impl)]
    if options.plan:
        plan = Plan.read(Path(options.plan))
        return _follow(plan, model, network, signature, context)
    if options.policy == "portfolio":
        from dlas.runtime.engine.portfolio import best

        return best(model, network, signature, context, rules, exact=options.exact)
    if options.policy == "measure":
        from dlas.runtime.engine.measured import measured_cost

        options_found = candidates(network, context, rules, exact=options.exact, cost=measured_cost(context))
    else:
        if options.policy == "fixed" and not rules:
            raise OptionError(
                "impl", options.impl, "rules such as Conv=gspc, because policy=fixed follows them"
            )
        options_found = candidates(network, context, rules, exact=options.exact)
    return assembled(network, choose(network, options_found), signature, context, options.policy)


def prepared(model: Model, *, batch: int = 1, without: Sequence[str] = (), rounding: str = "auto") -> Network:
    """The lowered network after the engine's passes.

    Args:
        model: The network.
        batch: Rows.
        without: Passes to leave out; ``quantize`` keeps float32 operators between the conversions of a quantised one.
        rounding: How integer sums become bytes; ``auto`` is ``xnnpack`` for a TFLite file, which is how LiteRT runs
            it, and ``onnx`` for any other.
    """
    network = lower(model, batch=batch)
    if rounding == "auto":
        rounding = "xnnpack" if model.source.get("format") == "tflite" else "onnx"
    if "quantize" not in without:
        network = lower_quantized(network, rounding)
    return run_passes(network, without=[name for name in without if name != "quantize"])


def assembled(
    network: Network, choices: Sequence[Choice], signature: Signature, context: Context, policy: str
) -> EngineExecutable:
    """The program of a selection."""
    program = Program(network, choices, context)
    plan = Plan.of(network, choices, program, policy, machine=machine(context.threads, context.isa))
    notes = []
    others = sorted({s.impl for s in program.steps if s.kernel is None})
    if others:
        notes.append("parts computed by " + ", ".join(others))
    return EngineExecutable(signature, program, plan, notes)


def _follow(plan: Plan, model: Model, network: Network, signature: Signature, context: Context) -> Executable:
    here = machine(context.threads, context.isa)
    executable: Executable
    if plan.backend:
        from dlas.runtime.engine.portfolio import whole

        plan.check(network)
        executable = whole(plan.backend, model, signature, context.threads)
    else:
        executable = assembled(network, plan.choices(network, context), signature, context, plan.policy)
    if plan.machine != here:
        made_for = ", ".join(f"{k} {v}" for k, v in plan.machine.items())
        executable.notes = (*executable.notes, f"the plan was made for {made_for}")
    return executable


def _split(text: str) -> list[str]:
    return [part for part in text.split("+") if part]
