"""Whole networks judge: own kernels by rule, own kernels as measured, and every other back end alone.

Times of single layers mislead, because a change of layout between layers costs more than many a layer; so the last
word is a timing of complete networks, in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dlas.core.environment import relevant_flags
from dlas.core.errors import DlasError
from dlas.core.figure import Figure
from dlas.core.timing import Protocol, Timing, measure
from dlas.graph.model import Model
from dlas.kernels.kernel import Context
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import Executable, LayerTiming, backend_for, backends
from dlas.runtime.engine.engine import assembled
from dlas.runtime.engine.executable import EngineExecutable
from dlas.runtime.engine.measured import measured_cost
from dlas.runtime.engine.network import Network
from dlas.runtime.engine.plan import VERSION, Plan, fingerprint, machine
from dlas.runtime.engine.select import Rule, candidates, choose
from dlas.runtime.engine.timings import Timings

WHOLE = ("onnxruntime", "openvino", "litert")
_PROTOCOL = Protocol(warmup_s=0.05, min_samples=25, min_s=0.3, max_s=4.0, rounds=5)
_WORTH = 0.99  # another back end must be this much faster than own kernels


class Whole(Executable):
    """Another back end that runs the whole network.

    Attributes:
        plan: What was decided, and why.
    """

    def __init__(self, name: str, inner: Executable) -> None:
        self.name = name
        self.inner = inner
        self.plan: Plan | None = None
        self.notes = (f"the whole network runs on {name}", *inner.notes)
        signature = getattr(inner, "signature", None)
        if signature is not None:
            self.signature: Signature = signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Executable."""
        return self.inner.run(inputs)

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The other back end's own."""
        return self.inner.runner(inputs)

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """The other back end's own."""
        return self.inner.profile(inputs, repeats)

    def memory(self) -> dict[str, Figure]:
        """The other back end's own."""
        return self.inner.memory()

    def close(self) -> None:
        """Let go of the other back end."""
        self.inner.close()


def whole(name: str, model: Model, signature: Signature, threads: int) -> Whole:
    """``model`` on one back end alone; raises UnsupportedError when it refuses."""
    return Whole(name, backend_for(name).compile(model, threads=threads, batch=signature.batch))


def best(
    model: Model,
    network: Network,
    signature: Signature,
    context: Context,
    rules: Sequence[Rule],
    *,
    exact: bool = False,
) -> Executable:
    """The fastest of the portfolio on this machine, remembered by network, machine and rules."""
    timings = Timings()
    here = [machine(context.threads, context.isa), list(relevant_flags()), [str(r) for r in rules], exact]
    key = ("portfolio", fingerprint(network), here, _versions())
    known = timings.get(*key)
    if known is not None:
        try:
            return _remembered(known, model, network, signature, context)
        except DlasError:  # a kernel or back end that is gone: choose again
            pass
    found = _candidates(model, network, signature, context, rules, exact)
    inputs = signature.random_inputs()
    times = measure({name: e.runner(inputs) for name, e in found.items()}, _PROTOCOL)
    chosen = min(times, key=lambda name: _worth(name, times))
    for name, executable in found.items():
        if name != chosen:
            executable.close()
    winner = found[chosen]
    measured_ms = {name: _quartile(t) for name, t in times.items()}
    own = isinstance(winner, EngineExecutable)
    plan = (
        replace(winner.plan, policy="portfolio", measured_ms=measured_ms)
        if own
        else Plan.of(
            network,
            choose(network, candidates(network, context, rules, exact=exact)),
            None,
            "portfolio",
            machine=machine(context.threads, context.isa),
            backend=chosen,
            measured_ms=measured_ms,
        )
    )
    winner.plan = plan
    timings.put({"backend": "" if own else chosen, "impls": plan.impls, "measured_ms": measured_ms}, *key)
    return winner


def _candidates(
    model: Model,
    network: Network,
    signature: Signature,
    context: Context,
    rules: Sequence[Rule],
    exact: bool,
) -> dict[str, EngineExecutable | Whole]:
    found: dict[str, EngineExecutable | Whole] = {}
    by_rule = choose(network, candidates(network, context, rules, exact=exact))
    found["rules"] = assembled(network, by_rule, signature, context, "rules")
    cost = measured_cost(context)
    measured = choose(network, candidates(network, context, rules, exact=exact, cost=cost))
    if [(c.name, c.form) for c in measured] != [(c.name, c.form) for c in by_rule]:
        found["measure"] = assembled(network, measured, signature, context, "measure")
    if rules:
        return found  # whoever asks for a kernel wants to see it run
    for name in WHOLE:
        if backends.get(name).missing():
            continue
        try:
            found[name] = whole(name, model, signature, context.threads)
        except DlasError:  # a back end that refuses the network is no candidate
            continue
    return found


def _remembered(
    known: dict, model: Model, network: Network, signature: Signature, context: Context
) -> Executable:
    impls = tuple((n, k, tuple(i), tuple(o)) for n, k, i, o in known["impls"])
    here = machine(context.threads, context.isa)
    plan = Plan(fingerprint(network), here, known["backend"], "portfolio", impls, known["measured_ms"])
    if known["backend"]:
        executable = whole(known["backend"], model, signature, context.threads)
        executable.plan = plan
        return executable
    made = assembled(network, plan.choices(network, context), signature, context, "portfolio")
    made.plan = replace(made.plan, measured_ms=known["measured_ms"])
    return made


def _quartile(timing: Timing) -> float:
    return float(np.percentile(timing.samples_ms, 25))


def _worth(name: str, times: Mapping[str, Timing]) -> float:
    return _quartile(times[name]) / (_WORTH if name in WHOLE else 1.0)


def _versions() -> dict[str, str]:
    from dlas import __version__
    from dlas.core.lazy import distribution_version
    from dlas.kernels.kernel import kernels

    found = {"dlas": __version__, "plan": str(VERSION)}
    for name in WHOLE:
        found[name] = distribution_version(backends.get(name).distribution)
    found |= {name: str(member.version) for name, member in kernels.members()}
    return found
