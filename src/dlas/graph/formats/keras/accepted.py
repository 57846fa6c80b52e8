"""The words that may stand in a Keras file or a SavedModel: everything that is not listed here is refused."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Layers that compute with tensors only. Left out on purpose: Lambda (bytecode), TFSMLayer, TorchModuleWrapper,
# JaxLayer and FlaxLayer (code from elsewhere), StringLookup, IntegerLookup, TextVectorization, Hashing and
# DenseFeatures (text and vocabulary files).
LAYERS = _words(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout Attention
    AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D
    BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop
    Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D
    ConvLSTM3D Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D Dot
    Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GRUV1 GRUV2 GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D
    GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell LSTMV1 LSTMV2
    LayerNormalization LeakyReLU LocallyConnected1D LocallyConnected2D Masking MaxPool1D MaxPool2D MaxPool3D
    MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU
    Permute RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter
    RandomContrast RandomCrop RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness
    RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    ReversibleEmbedding SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D SimpleRNN
    SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
    StackedRNNCells Subtract ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D
    UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """
)

# Models, policies, initialisers, regularisers, constraints, and how Keras 3 spells tensors.
PARTS = _words(
    """
    Functional Model Sequential DTypePolicy FloatDTypePolicy Policy Constant GlorotNormal GlorotUniform HeNormal
    HeUniform IdentityInitializer LecunNormal LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal
    RandomUniform TruncatedNormal VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer MaxNorm MinMaxNorm
    NonNeg RadialConstraint UnitNorm __keras_tensor__ __tensor__ __numpy__ __ellipsis__ __slice__ __tuple__
    """
)

# Functions of keras.ops that a functional model may hold as nodes; none takes a function or touches a file.
OPERATIONS = _words(
    """
    Abs Absolute Add Amax Amin Arctan Average BroadcastTo Ceil Clip Concatenate Cos Divide Dot Einsum Equal Exp
    ExpandDims Flip Floor FloorDivide Greater GreaterEqual Less LessEqual Log Log1p LogicalAnd LogicalNot
    LogicalOr Matmul Max Maximum Mean Min Minimum Mod Moveaxis Multiply Negative NotEqual OnesLike Pad Power
    Prod Reciprocal Repeat Reshape Roll Round Sign Sin Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes
    Take Tan Tanh Tensordot Tile Transpose TrueDivide Var Where ZerosLike GetItem AveragePool BatchNorm Celu
    Conv ConvTranspose DepthwiseConv DepthToSpace DotProductAttention Elu Gelu Glu HardSigmoid HardSilu HardTanh
    LayerNorm LeakyRelu LogSigmoid LogSoftmax MaxPool Moments Normalize OneHot RMSNorm Relu Relu6 Selu
    SeparableConv Sigmoid Silu Softmax Softplus Softsign SpaceToDepth Erf Erfc Logsumexp Rsqrt TopK Resize Cast
    Norm Slice StopGradient Unstack
    """
)

# Functions that a configuration may name.
ACTIVATIONS = _words(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    squareplus swish tanh tanh_shrink threshold
    """
)

# Keras 2 stored plain TensorFlow calls of a functional model by the name of the function.
TF_CALLS = _words(
    """
    __operators__.add __operators__.getitem abs add cast clip_by_value compat.v1.transpose concat
    convert_to_tensor exp expand_dims identity image.resize linalg.matmul math.abs math.add math.divide math.exp
    math.log math.maximum math.minimum math.multiply math.negative math.pow math.reciprocal math.reduce_max
    math.reduce_mean math.reduce_min math.reduce_sum math.rsqrt math.sigmoid math.sqrt math.square
    math.squared_difference math.subtract math.tanh math.truediv matmul maximum minimum multiply nn.avg_pool2d
    nn.bias_add nn.depth_to_space nn.elu nn.gelu nn.leaky_relu nn.max_pool2d nn.relu nn.relu6 nn.selu nn.sigmoid
    nn.silu nn.softmax nn.softplus nn.space_to_depth nn.tanh pad pow reduce_max reduce_mean reduce_min
    reduce_sum repeat reshape reverse sigmoid slice split sqrt square squeeze stack strided_slice subtract tanh
    tile transpose truediv unstack where zeros_like
    """
)

# Operators of TensorFlow that compute, call a function of the same file, or hold a variable.
OPERATORS = _words(
    """
    Abs Acos Acosh Add AddN AddV2 All Any ArgMax ArgMin Asin Asinh Assert Atan Atan2 Atanh AvgPool AvgPool3D
    BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BiasAddV1 BitwiseAnd BitwiseOr BitwiseXor
    BroadcastArgs BroadcastGradientArgs BroadcastTo Cast Ceil CheckNumerics ClipByValue
    CombinedNonMaxSuppression Concat ConcatV2 Const Conv1D Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 Cos Cosh CropAndResize Cumprod Cumsum DepthToSpace DepthwiseConv2dNative Div DivNoNan
    Einsum Elu Empty EnsureShape Equal Erf Erfc Exp ExpandDims Expm1 ExtractImagePatches FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel Fill Floor FloorDiv FloorMod FusedBatchNorm
    FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual Identity IdentityN If
    InvertPermutation IsFinite IsInf IsNan L2Loss LRN LeakyRelu LeftShift Less LessEqual LinSpace Log Log1p
    LogSoftmax LogicalAnd LogicalNot LogicalOr LogicalXor MatMul MatrixBandPart MatrixDiag MatrixDiagPart
    MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiagV3 Max MaxPool MaxPool3D MaxPoolV2
    Maximum Mean Min Minimum MirrorPad Mul MulNoNan Ndtri Neg NextAfter NoOp NonMaxSuppressionV2
    NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NotEqual OneHot OnesLike Pack Pad PadV2
    PartitionedCall Placeholder PlaceholderWithDefault Pow PreventGradient Prod QuantizeAndDequantizeV2
    QuantizeAndDequantizeV4 Range Rank RealDiv Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor ReverseSequence ReverseV2 RightShift Rint Roll Round Rsqrt ScatterNd
    Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToBatchND
    SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf
    StatelessWhile StopGradient StridedSlice Sub Sum Tan Tanh TensorListFromTensor TensorListGetItem
    TensorListLength TensorListPopBack TensorListPushBack TensorListReserve TensorListResize TensorListSetItem
    TensorListStack TensorListElementShape TensorListConcatV2 EmptyTensorList TensorScatterAdd
    TensorScatterUpdate Tile TopKV2 Transpose TruncateDiv TruncateMod Unpack Where While Xdivy Xlogy ZerosLike
    UnsortedSegmentSum UnsortedSegmentMax SegmentSum AssignAddVariableOp AssignSubVariableOp AssignVariableOp
    DestroyResourceOp DisableCopyOnRead ReadVariableOp ResourceGather VarHandleOp VarIsInitializedOp
    VariableShape RandomStandardNormal RandomUniform RandomUniformInt TruncatedNormal RandomShuffle Multinomial
    StatelessRandomGetKeyCounter StatelessRandomGetAlg StatelessRandomNormalV2 StatelessRandomUniformV2
    StatelessRandomUniformFullIntV2 StatelessRandomUniformIntV2 StatelessTruncatedNormalV2 RngReadAndSkip
    ReluGrad Relu6Grad TanhGrad SigmoidGrad RsqrtGrad SqrtGrad Conv2DBackpropFilter MaxPoolGrad AvgPoolGrad
    BiasAddGrad ConcatOffset CudnnRNNBackpropV3 CudnnRNNV3 FusedBatchNormGradV3 EluGrad SeluGrad LeakyReluGrad
    SoftplusGrad DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput
    """
)

# What every SavedModel has for writing checkpoints; never called when it is read through its object graph.
CHECKPOINTS = _words("MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin")
