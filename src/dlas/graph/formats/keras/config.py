"""The configuration of a Keras file, judged before Keras sees it: only names of Keras's own building blocks pass.

Keras makes objects from what the configuration says: classes by name out of any module, functions out of serialised
bytecode, files read from paths. So every class, function and module in it must stand in the lists here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dlas.core.errors import ModelError, UnsupportedError

MAX_TEXT = 64 * 2**20  # bytes of a configuration; 10,000 layers take about 10 MB
_MAX_DEPTH = 200  # nested models and wrappers stay far below
_MAX_OBJECTS = 100_000
_LARGEST = 2**31  # of any number: units, filters, sizes
_OPEN_ENDS = (2**63 - 1, -(2**63), 1e9, -1e9, 3.4028234663852886e38, -3.4028234663852886e38)
_NOT_SIZES = frozenset({"shared_object_id", "seed"})  # an address, and any number at all

# Layers that compute with tensors only. Left out on purpose: Lambda (bytecode), TFSMLayer, TorchModuleWrapper,
# JaxLayer and FlaxLayer (code from elsewhere), StringLookup, IntegerLookup, TextVectorization, Hashing and
# DenseFeatures (text and vocabulary files).
_LAYERS = """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention AugMix
    AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D
    Cropping2D Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding
    Equalization Flatten GRU GRUCell GRUV1 GRUV2 GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupQueryAttention Identity InputLayer LSTM LSTMCell LSTMV1 LSTMV2 LayerNormalization LeakyReLU
    LocallyConnected1D LocallyConnected2D Masking MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization RNN RandAugment
    RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomErasing RandomFlip
    RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU
    RepeatVector Rescaling Reshape Resizing ReversibleEmbedding SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D
    SpatialDropout3D SpectralNormalization StackedRNNCells Subtract ThresholdedReLU TimeDistributed UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""
_PARTS = """
    Functional Model Sequential DTypePolicy FloatDTypePolicy Policy
    Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer LecunNormal LecunUniform Ones Orthogonal
    OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros
    L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm
    __keras_tensor__ __tensor__ __numpy__ __ellipsis__ __slice__ __tuple__
"""
# Functions of keras.ops that a functional model may hold as nodes; none takes a function or touches a file.
_OPERATIONS = """
    Abs Absolute Add Amax Amin Arctan Average BroadcastTo Ceil Clip Concatenate Cos Divide Dot Einsum Equal Exp
    ExpandDims Flip Floor FloorDivide Greater GreaterEqual Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr
    Matmul Max Maximum Mean Min Minimum Mod Moveaxis Multiply Negative NotEqual OnesLike Pad Power Prod Reciprocal
    Repeat Reshape Roll Round Sign Sin Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take Tan Tanh
    Tensordot Tile Transpose TrueDivide Var Where ZerosLike GetItem AveragePool BatchNorm Celu Conv ConvTranspose
    DepthwiseConv DepthToSpace DotProductAttention Elu Gelu Glu HardSigmoid HardSilu HardTanh LayerNorm LeakyRelu
    LogSigmoid LogSoftmax MaxPool Moments Normalize OneHot RMSNorm Relu Relu6 Selu SeparableConv Sigmoid Silu Softmax
    Softplus Softsign SpaceToDepth Erf Erfc Logsumexp Rsqrt TopK Resize Cast Norm Slice StopGradient Unstack
"""
ACTIVATIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid
    log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus squareplus swish
    tanh tanh_shrink threshold
    """.split()
)
# Keras 2 stored plain TensorFlow calls of a functional model by the name of the function.
_TF_CALLS = frozenset(
    """
    __operators__.add __operators__.getitem abs add cast clip_by_value compat.v1.transpose concat convert_to_tensor exp
    expand_dims identity image.resize linalg.matmul math.abs math.add math.divide math.exp math.log math.maximum
    math.minimum math.multiply math.negative math.pow math.reciprocal math.reduce_max math.reduce_mean math.reduce_min
    math.reduce_sum math.rsqrt math.sigmoid math.sqrt math.square math.squared_difference math.subtract math.tanh
    math.truediv matmul maximum minimum multiply nn.avg_pool2d nn.bias_add nn.depth_to_space nn.elu nn.gelu
    nn.leaky_relu nn.max_pool2d nn.relu nn.relu6 nn.selu nn.sigmoid nn.silu nn.softmax nn.softplus nn.space_to_depth
    nn.tanh pad pow reduce_max reduce_mean reduce_min reduce_sum repeat reshape reverse sigmoid slice split sqrt square
    squeeze stack strided_slice subtract tanh tile transpose truediv unstack where zeros_like
    """.split()
)
_CLASSES = frozenset((_LAYERS + _PARTS + _OPERATIONS).split())
_TF_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
_MODULE = re.compile(
    r"^(tf_)?keras(\.src)?(\.(layers|initializers|regularizers|constraints|activations|models|engine|ops"
    r"|dtype_policies|mixed_precision)(\.[a-z_0-9]+)*)?$"
)
_CODE = {
    "Lambda": "a Lambda layer, which is Python code",
    "__lambda__": "a function serialised as Python bytecode",
    "function_type": "a function serialised as Python bytecode",
    "TFSMLayer": "a layer that loads another model file (TFSMLayer)",
    "TorchModuleWrapper": "a pickled PyTorch module (TorchModuleWrapper)",
    "__typespec__": "a TensorFlow type of its own (__typespec__)",
}
_TEXT = frozenset({"TextVectorization", "StringLookup", "IntegerLookup", "Hashing", "HashedCrossing", "DenseFeatures"})


def read_config(text: bytes | str, file: str) -> dict[str, Any]:
    """The configuration as a dictionary, once everything in it has been found harmless.

    Raises:
        ModelError: Not JSON, too large or too deep, or it holds code.
        UnsupportedError: It names layers or functions that are not Keras's own, or that read files; all are named.
    """
    if len(text) > MAX_TEXT:
        raise ModelError(f"{file}: its configuration has {len(text)} bytes, at most {MAX_TEXT} are read")
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise ModelError(f"{file}: its configuration is nested too deeply", "export it again") from error
    except ValueError as error:
        raise ModelError(f"{file}: its configuration is not JSON: {error}", "save it again with Keras") from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise ModelError(f"{file}: its configuration describes no network", "save it again with Keras")
    # Losses and metrics are never built: reading passes compile=False.
    config.pop("compile_config", None)
    check_config(config, file)
    return config


def check_config(config: Any, file: str) -> None:
    """Refuse what :func:`read_config` refuses, in a configuration that is parsed already."""
    refused: dict[str, None] = {}
    for entry in _objects(config, file):
        kind = entry.get("class_name")
        _refuse_code(entry, kind, file)
        if kind is not None:
            for problem in _strangers(entry, kind):
                refused[problem] = None
    if refused:
        shown = list(refused)
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        raise UnsupportedError(
            f"{file} uses what is not a plain Keras layer or function: {', '.join(shown[:8])}{more}",
            "nothing from a file is ever run: build the network without it, or export it to ONNX yourself",
        )


def _objects(config: Any, file: str) -> Iterator[Mapping[str, Any]]:
    """Every dictionary in ``config``; no recursion, so that depth costs nothing."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    count = 0
    while waiting:
        item, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ModelError(f"{file}: its configuration is nested deeper than {_MAX_DEPTH}", "export it again")
        if isinstance(item, Mapping):
            count += 1
            if count > _MAX_OBJECTS:
                raise ModelError(f"{file}: its configuration has more than {_MAX_OBJECTS} objects")
            yield item
            waiting += [(value, depth + 1) for key, value in item.items() if key not in _NOT_SIZES]
        elif isinstance(item, list):
            waiting += [(value, depth + 1) for value in item]
        elif isinstance(item, int | float) and _LARGEST <= abs(item) < float("inf") and item not in _OPEN_ENDS:
            raise ModelError(f"{file}: its configuration holds the number {item:.4g}, no size of a network")


def _refuse_code(entry: Mapping[str, Any], kind: Any, file: str) -> None:
    found = kind if isinstance(kind, str) and kind in _CODE else ""
    if "function_type" in entry and entry.get("function_type") != "function":
        found = found or "function_type"
    if "__lambda__" in entry:
        found = "__lambda__"
    if found:
        raise ModelError(
            f"{file} holds {_CODE[found]}, which dlas does not run",
            "replace it by Keras layers and save again, or export the network to ONNX yourself",
        )


def _strangers(entry: Mapping[str, Any], kind: Any) -> Iterator[str]:
    if not isinstance(kind, str):
        yield f"class {_shown(kind)}"
        return
    module, registered = entry.get("module"), entry.get("registered_name")
    inner = entry.get("config")
    if kind == "function":
        # Keras looks such a function up in any module; activations are the only ones a network needs.
        if not isinstance(inner, str) or inner not in ACTIVATIONS or registered not in (None, "function", inner):
            yield f"function {_shown(module)}.{_shown(inner)}"
        elif module not in (None, "builtins", "keras.activations"):
            yield f"module {_shown(module)}"
        return
    if kind in _TF_LAYERS:
        called = inner.get("function") if isinstance(inner, Mapping) else None
        if called not in _TF_CALLS:
            yield f"TensorFlow function {_shown(called)}"
    elif kind in _TEXT:
        yield f"{kind} (it works on text or reads files)"
    elif kind not in _CLASSES:
        yield _shown(kind)
    if module is not None and not (isinstance(module, str) and _MODULE.match(module)):
        yield f"module {_shown(module)}"
    if registered not in (None, kind):
        yield f"registered object {_shown(registered)}"


def _shown(value: Any) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", str(value))[:60]
