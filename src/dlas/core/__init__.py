"""Plumbing every room uses; imports nothing from the layers above it and no heavy library.

Importing it also keeps the libraries that dlas uses from sending usage data: this must be said before they are loaded.
"""

import os
import sys

for _name, _value in {
    # ONNX Runtime since 1.29; releases differ in the name they look for.
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)
# OpenVINO's converter has no such variable and sends unless a file in the home folder forbids it; where its telemetry
# package cannot be imported it takes a stub that does nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
