"""A disk that is full or read-only, wherever something is written: one clear line, and it works once there is room."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from faults_bench import Bench, Outcome

RUN = ["run", "net.onnx", "--data", "rows.npz", "--backend", "onnxruntime", "--threads", "1", "--quick"]
RUN += ["--compress", "float16", "--out", "disk/out"]
COMPRESS = ["compress", "net.onnx", "channel:ratio=0.3,finetune_epochs=4,batch_size=8,lr=0.01"]
COMPRESS += ["--data", "rows.npz", "-o", "disk/small.onnx", "--force"]
CONVERT = ["convert", "net.onnx", "disk/net.tflite", "--force", "--no-check"]
COMMANDS = {"run": RUN, "compress": COMPRESS, "convert": CONVERT}

MOUNT = """
mount -t tmpfs -o {options} none {place} || exit 99
{before}
{command} > {root}/stdout1 2> {root}/stderr1
echo $? > {root}/code1
mount -o remount,rw,size=500m {place} || exit 98
{command} > {root}/stdout2 2> {root}/stderr2
echo $? > {root}/code2
find {place} -type f > {root}/listing
"""


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """The start of a command that may mount; skipped where none may."""
    start = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        tried = subprocess.run(
            [*start, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("needs unshare(1)")
    if tried.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {tried.stderr.decode().strip()}")
    return start


def try_twice(
    bench: Bench, namespace: list[str], place: Path, options: str, words: list[str], before: str = "true"
) -> tuple[Outcome, Outcome]:
    """A command while ``place`` is another disk, and again when that one has been enlarged and made writable."""
    place.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", "dlas.cli.main", *words])
    script = MOUNT.format(options=options, place=place, command=command, root=bench.root, before=before)
    done = subprocess.run(
        [*namespace, "sh", "-c", script], cwd=bench.files, env=bench.env, check=False, timeout=600
    )
    assert done.returncode == 0
    first, second = (
        Outcome(
            int((bench.root / f"code{n}").read_text()),
            (bench.root / f"stdout{n}").read_text(),
            (bench.root / f"stderr{n}").read_text(),
        )
        for n in (1, 2)
    )
    left = [p for p in (bench.root / "listing").read_text().split() if "/.work/" in p or ".dlas-scratch" in p]
    assert left == []
    return first, second


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("place", "size", "what"),
    [
        ("cache", "8k", "compress"),
        slow("cache", "4k", "run"),
        slow("cache", "64k", "run"),
        slow("cache", "160k", "run"),
        slow("cache", "320k", "run"),
        slow("cache", "4k", "compress"),
        slow("tmp", "4k", "run"),
        slow("tmp", "64k", "run"),
        slow("tmp", "64k", "compress"),
        slow("tmp", "4k", "convert"),
        slow("files/disk", "4k", "run"),
        slow("files/disk", "64k", "run"),
        slow("files/disk", "200k", "run"),
        slow("files/disk", "4k", "compress"),
        slow("files/disk", "4k", "convert"),
    ],
)
def test_a_full_disk(bench: Bench, namespace: list[str], place: str, size: str, what: str) -> None:
    (bench.files / "disk").mkdir()
    first, second = try_twice(bench, namespace, bench.root / place, f"size={size}", COMMANDS[what])
    first.assert_well_or_clear()
    if place != "tmp":  # temporary files may go elsewhere
        first.assert_clear()
    second.assert_well()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("cache", "run"),
        ("cache", "compress"),
        ("files/disk", "run"),
        ("files/disk", "compress"),
        ("tmp", "run"),
    ],
)
def test_a_read_only_disk(bench: Bench, namespace: list[str], place: str, what: str) -> None:
    (bench.files / "disk").mkdir()
    first, second = try_twice(bench, namespace, bench.root / place, "ro", COMMANDS[what])
    if place == "tmp":
        first.assert_well()  # another place for temporary files is found
    else:
        first.assert_clear("DLAS_CACHE" if place == "cache" else "")
    second.assert_well()


@pytest.mark.slow
def test_a_disk_that_a_finished_study_is_exported_to(bench: Bench, namespace: list[str]) -> None:
    words = [w.replace("disk/", "") for w in RUN]
    bench.run(*words).assert_well()
    export = ["study", "export", "-o", "disk/rows.csv", "--out", "out"]
    for command in (export, ["report", "out", "-o", "disk/page.html"]):
        full = "head -c 4096 /dev/zero > disk/filler; true"
        first, second = try_twice(bench, namespace, bench.files / "disk", "size=4k", command, full)
        first.assert_clear()
        second.assert_well()
