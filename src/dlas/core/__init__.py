"""Plumbing every room uses; imports nothing from the layers above it and no heavy library."""

import os

# ONNX Runtime (since 1.29) sends usage data home unless its environment says otherwise before it is loaded; releases
# differ in the name they look for.
for _name in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
    os.environ.setdefault(_name, "1")
