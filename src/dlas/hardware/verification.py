"""Is an accelerator's model its hardware? Both are given the same random layers; results and counters must be equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dlas.core.cache import default_root, key_of
from dlas.core.errors import CheckFailedError
from dlas.core.files import write_atomic
from dlas.core.provenance import code_hash
from dlas.hardware.accelerator import Accelerator

TRIALS = 200


@dataclass(frozen=True)
class Verification:
    """What came of comparing model and RTL.

    Attributes:
        accelerator: As spelled.
        trials: Layers compared.
        hesitant: How many of them also ran with a host that made the hardware wait.
        failures: One line per layer that differed.
    """

    accelerator: str
    trials: int
    hesitant: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all were equal."""
        return not self.failures

    def to_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def verify(
    accelerator: Accelerator,
    *,
    trials: int = TRIALS,
    seed: int = 0,
    tell: Callable[[float, str], None] = lambda fraction, text: None,
) -> Verification:
    """Compare model and RTL on random layers, each also under random back-pressure; the answer is remembered.

    Args:
        accelerator: With its options.
        trials: Layers.
        seed: Of layers, inputs and hesitation.
        tell: Progress.

    Raises:
        MissingDependencyError: The tools of the extra ``hardware`` are not installed.
        UnsupportedError: There is no C++ compiler.
    """
    from dlas.hardware.simulation.simulator import Hesitation

    tell(0.0, "build the simulation")
    if "simulator" not in vars(accelerator):
        accelerator.fast = False  # random layers are small: most of the time goes into the compiler
    assert accelerator.simulator.counters
    random = np.random.default_rng(seed)
    failures = []
    for trial in range(trials):
        tell(trial / trials, f"layer {trial + 1} of {trials}")
        node, x = accelerator.trial(random)
        layer = accelerator.layer(node)
        wanted, cycles = layer.run(x, "tlm")
        accelerator.hesitation = None
        found, real = layer.run(x, "rtl")
        accelerator.hesitation = Hesitation(*random.integers(0, 200, 2).tolist(), seed=trial + 1)
        slow, _ = layer.run(x, "rtl")
        accelerator.hesitation = None
        shape = "x".join(map(str, x.shape))
        for what, array in (("the RTL", found), ("the RTL under back-pressure", slow)):
            if not np.array_equal(wanted, array):
                failures.append(f"{node.op} {shape}: {int((wanted != array).sum())} results of {what} differ")
        failures += [
            f"{node.op} {shape}: {name} is {real.counters[name]}, not {count}"
            for name, count in cycles.counters.items()
            if count != real.counters[name]
        ]
    done = Verification(accelerator.spelled(), trials, trials, tuple(failures))
    _remember(accelerator, done)
    return done


def known(accelerator: Accelerator) -> Verification | None:
    """What came of the latest :func:`verify` of this accelerator in this version of dlas, if there was one."""
    place = _place(accelerator)
    if not place.exists():
        return None
    found = json.loads(place.read_text())
    return Verification(**{**found, "failures": tuple(found["failures"])})


def require(accelerator: Accelerator) -> str:
    """Whether the model may stand for the hardware in a report, in words.

    Raises:
        CheckFailedError: It was compared with the RTL, and they differed.
    """
    found = known(accelerator)
    if found is None:
        return f"not compared with its RTL yet: `dlas hw verify {accelerator.spelled()}`"
    if not found.passed:
        raise CheckFailedError(
            f"{accelerator.spelled()} is not its RTL: {found.failures[0]}",
            f"mend it, then run `dlas hw verify {accelerator.spelled()}` again",
        )
    return f"equal to its RTL on {found.trials} random layers, results and cycles"


def _place(accelerator: Accelerator) -> Path:
    key = key_of("hardware verification", accelerator.spelled(), code_hash())
    return default_root() / "verified" / f"{key}.json"


def _remember(accelerator: Accelerator, done: Verification) -> None:
    place = _place(accelerator)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(asdict(done)).encode())
