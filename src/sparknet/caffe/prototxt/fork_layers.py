"""Layer types that BVLC Caffe 1.0 does not have, and whose they are.

A net that somebody published is often of a fork. Its first foreign word is mostly a field of such a layer
(`permute_param`), and to say "unknown field" of it would send its reader looking for a misspelling.
"""

from typing import NamedTuple

__all__ = ["BVLC_TYPES", "FIELDS", "FOREIGN_LAYERS", "about_type"]


class ForeignLayer(NamedTuple):
    """A layer type of forks."""

    whose: str
    """The forks that have it."""
    instead: str
    """What to write in place of it; empty: BVLC Caffe has nothing that does the same."""
    fields: tuple[str, ...]
    """Its own fields of LayerParameter."""


_SSD = "SSD (weiliu89/caffe)"
_RCNN = "Fast and Faster R-CNN (rbgirshick/caffe-fast-rcnn)"
_RFCN = "R-FCN (daijifeng001/caffe-rfcn)"
_DEFORMABLE = "deformable convolutional networks (unsky/Deformable-ConvNets-caffe)"
_ON_SPARK = "CaffeOnSpark (yahoo/CaffeOnSpark)"
_NVIDIA = "NVCaffe (NVIDIA/caffe, DIGITS)"
_DEEPLAB = "DeepLab (deeplab-public)"
_PSP = "DeepLab (deeplab-public) and PSPNet (hszhao/PSPNet)"
_SEGNET = "SegNet (alexgkendall/caffe-segnet)"
_FLOW = "FlowNet (lmb-freiburg/flownet2)"
_CRF = "CRF-as-RNN (torrvision/caffe)"
_SHUFFLE = "ShuffleNet (farmingyard/ShuffleNet)"
_DEPTHWISE = "MobileNet (yonghenglh6/DepthwiseConvolution)"
_BN = "SegNet, PSPNet and TSN (yjxiong/caffe)"
_SENET = "SENet (hujie-frank/SENet)"
_INTEL = "Intel Caffe (intel/caffe)"
_RISTRETTO = "Ristretto (pmgysel/caffe)"
_FACES = "nets for faces (happynear/caffe-windows)"
_SPHERE = "SphereFace (wy1iu/sphereface)"
_CENTRE = "centre loss (ydwen/caffe-face)"
_YOLO = "YOLO in Caffe (eric612/MobileNet-YOLO)"
_CTC = "recurrent nets with CTC (ChWick/caffe)"
_TRANSFORMER = "spatial transformers (daerduoCarey/SpatialTransformerLayer)"
_FOCAL = "focal loss (zimenglan-sysu-512/Focal-Loss)"
_MASK = "Mask R-CNN in Caffe (jasjeetIM/Mask-RCNN)"

_AS_GROUPS = "write a Convolution whose group is the number of its channels; the weights are the same"
_NORM_AND_SCALE = (
    "write a BatchNorm and a Scale with bias_term after it; its weights are in another form and must be converted"
)
_AS_ROWS = "write a Data layer that names an LMDB, or give the rows with --data KIND:PATH"
_LABELLED = "write ImageData or Data layers, one for the images and one for the labels"
_SMOOTH = "BVLC Caffe has EuclideanLoss, which is another measure"
_UNSAMPLED = "BVLC Caffe has Deconvolution with a bilinear filler, which enlarges by whole numbers"

FOREIGN_LAYERS: dict[str, ForeignLayer] = {
    # SSD
    "Permute": ForeignLayer(_SSD, "", ("permute_param",)),
    "Normalize": ForeignLayer(f"{_SSD} and {_FACES}", "", ("norm_param",)),
    "PriorBox": ForeignLayer(_SSD, "", ("prior_box_param",)),
    "MultiBoxLoss": ForeignLayer(_SSD, "", ("multibox_loss_param",)),
    "DetectionOutput": ForeignLayer(_SSD, "", ("detection_output_param",)),
    "DetectionEvaluate": ForeignLayer(_SSD, "", ("detection_evaluate_param",)),
    "AnnotatedData": ForeignLayer(_SSD, "", ("annotated_data_param",)),
    "VideoData": ForeignLayer(f"{_SSD} and TSN (yjxiong/caffe)", "", ("video_data_param",)),
    # R-CNN and R-FCN
    "ROIPooling": ForeignLayer(_RCNN, "", ("roi_pooling_param",)),
    "SmoothL1Loss": ForeignLayer(f"{_RCNN} and {_SSD}", _SMOOTH, ("smooth_l1_loss_param",)),
    "Proposal": ForeignLayer(_RCNN, "", ("proposal_param",)),
    "ROIAlign": ForeignLayer(_MASK, "", ("roi_align_param",)),
    "PSROIPooling": ForeignLayer(_RFCN, "", ("psroi_pooling_param",)),
    "BoxAnnotatorOHEM": ForeignLayer(_RFCN, "", ("box_annotator_ohem_param",)),
    "SmoothL1LossOHEM": ForeignLayer(_RFCN, _SMOOTH, ("smooth_l1_loss_ohem_param",)),
    "SoftmaxWithLossOHEM": ForeignLayer(_RFCN, "write SoftmaxWithLoss, which counts every row alike", ()),
    "DeformableConvolution": ForeignLayer(_DEFORMABLE, "", ("deformable_convolution_param",)),
    "DeformablePSROIPooling": ForeignLayer(_DEFORMABLE, "", ("deformable_psroi_pooling_param",)),
    # training on clusters and GPUs
    "CoSData": ForeignLayer(_ON_SPARK, _AS_ROWS, ("cos_data_param",)),
    "DetectNetTransformation": ForeignLayer(
        _NVIDIA, "", ("detectnet_groundtruth_param", "detectnet_augmentation_param")
    ),
    "MnActivation": ForeignLayer(
        _INTEL, "it sends activations between machines: take it out", ("mn_activation_param",)
    ),
    "MnParamGrad": ForeignLayer(
        _INTEL, "it sends gradients between machines: take it out", ("mn_param_grad_param",)
    ),
    "ConvolutionRistretto": ForeignLayer(
        _RISTRETTO, "write Convolution, which rounds nothing", ("quantization_param",)
    ),
    "DeconvolutionRistretto": ForeignLayer(_RISTRETTO, "write Deconvolution, which rounds nothing", ()),
    "FcRistretto": ForeignLayer(_RISTRETTO, "write InnerProduct, which rounds nothing", ()),
    "LRNRistretto": ForeignLayer(_RISTRETTO, "write LRN, which rounds nothing", ()),
    # segmentation
    "Interp": ForeignLayer(_PSP, _UNSAMPLED, ("interp_param",)),
    "ImageSegData": ForeignLayer(_DEEPLAB, _LABELLED, ()),
    "DenseCRF": ForeignLayer(_DEEPLAB, "", ("dense_crf_param",)),
    "DomainTransform": ForeignLayer(_DEEPLAB, "", ("domain_transform_param",)),
    "MatRead": ForeignLayer(_DEEPLAB, "it reads Matlab's files: take it out", ("mat_read_param",)),
    "MatWrite": ForeignLayer(_DEEPLAB, "it writes Matlab's files: take it out", ("mat_write_param",)),
    "SegAccuracy": ForeignLayer(_DEEPLAB, "write Accuracy with an ignore_label", ("seg_accuracy_param",)),
    "UniqueLabel": ForeignLayer(_DEEPLAB, "", ("unique_label_param",)),
    "Upsample": ForeignLayer(f"{_SEGNET} and {_YOLO}", _UNSAMPLED, ("upsample_param",)),
    "DenseImageData": ForeignLayer(_SEGNET, _LABELLED, ("dense_image_data_param",)),
    "BN": ForeignLayer(_BN, _NORM_AND_SCALE, ("bn_param",)),
    "SyncBN": ForeignLayer(_BN, _NORM_AND_SCALE, ()),
    "BNData": ForeignLayer("PSPNet (hszhao/PSPNet)", _NORM_AND_SCALE, ()),
    "MultiStageMeanfield": ForeignLayer(_CRF, "", ("multi_stage_meanfield_param",)),
    # optical flow
    "Correlation": ForeignLayer(_FLOW, "", ("correlation_param",)),
    "Correlation1D": ForeignLayer(_FLOW, "", ()),
    "FlowWarp": ForeignLayer(_FLOW, "", ("flow_warp_param",)),
    "Resample": ForeignLayer(_FLOW, _UNSAMPLED, ("resample_param",)),
    "Downsample": ForeignLayer(_FLOW, "write a Pooling that takes the average", ("downsample_param",)),
    "ChannelNorm": ForeignLayer(_FLOW, "", ("channel_norm_param",)),
    "DataAugmentation": ForeignLayer(_FLOW, "", ("augmentation_param", "coeff_schedule_param")),
    "GenerateAugmentationParameters": ForeignLayer(_FLOW, "", ()),
    "FlowAugmentation": ForeignLayer(_FLOW, "", ()),
    "L1Loss": ForeignLayer(f"{_FLOW} and {_NVIDIA}", _SMOOTH, ("l1_loss_param",)),
    "LpqLoss": ForeignLayer(_FLOW, _SMOOTH, ("lpq_loss_param",)),
    "Mean": ForeignLayer(_FLOW, "write transform_param { mean_file } or mean_value", ("mean_param",)),
    "CustomData": ForeignLayer(_FLOW, _AS_ROWS, ()),
    "ImgReader": ForeignLayer(_FLOW, "it reads image files: write ImageData", ("reader_param",)),
    "FLOReader": ForeignLayer(_FLOW, "", ()),
    "FloatReader": ForeignLayer(_FLOW, "", ()),
    "FLOWriter": ForeignLayer(_FLOW, "it writes files: take it out", ("writer_param",)),
    "ImgWriter": ForeignLayer(_FLOW, "it writes files: take it out", ()),
    # small nets
    "ShuffleChannel": ForeignLayer(_SHUFFLE, "", ("shuffle_channel_param",)),
    "DepthwiseConvolution": ForeignLayer(_DEPTHWISE, _AS_GROUPS, ()),
    "ConvolutionDepthwise": ForeignLayer(_SHUFFLE, _AS_GROUPS, ()),
    "ReLU6": ForeignLayer(
        "MobileNet v2 in Caffe (chuanqi305/ssd)", "write Clip with min: 0 max: 6", ("relu6_param",)
    ),
    "Axpy": ForeignLayer(
        _SENET,
        "write a Scale of the second bottom by the flattened first, axis: 0, then an Eltwise with the third",
        ("axpy_param",),
    ),
    # faces, recurrent nets and others
    "CenterLoss": ForeignLayer(_CENTRE, "", ("center_loss_param",)),
    "MarginInnerProduct": ForeignLayer(_SPHERE, "", ("margin_inner_product_param",)),
    "LabelSpecificAdd": ForeignLayer(_FACES, "", ("label_specific_add_param",)),
    "LabelSpecificMargin": ForeignLayer(_FACES, "", ("label_specific_margin_param",)),
    "TripletLoss": ForeignLayer(_FACES, "BVLC Caffe has ContrastiveLoss, of pairs", ("triplet_loss_param",)),
    "FocalLoss": ForeignLayer(_FOCAL, "", ("focal_loss_param",)),
    "Region": ForeignLayer(_YOLO, "", ("region_param",)),
    "RegionLoss": ForeignLayer(_YOLO, "", ("region_loss_param",)),
    "Yolov3": ForeignLayer(_YOLO, "", ("yolov3_param",)),
    "Yolov3DetectionOutput": ForeignLayer(_YOLO, "", ("yolov3_detection_output_param",)),
    "YoloDetectionOutput": ForeignLayer(_YOLO, "", ("yolo_detection_output_param",)),
    "Reorg": ForeignLayer(_YOLO, "", ("reorg_param",)),
    "CtcLoss": ForeignLayer(_CTC, "", ("ctc_loss_param",)),
    "WarpCTC": ForeignLayer(_CTC, "", ("ctc_param",)),
    "CTCGreedyDecoder": ForeignLayer(_CTC, "", ("ctc_decoder_param",)),
    "ContinuationIndicator": ForeignLayer(_CTC, "", ("continuation_indicator_param",)),
    "Reverse": ForeignLayer(_CTC, "", ("reverse_param",)),
    "Transpose": ForeignLayer(_CTC, "", ("transpose_param",)),
    "SpatialTransformer": ForeignLayer(_TRANSFORMER, "", ("st_param",)),
    "LocalConvolution": ForeignLayer(
        "locally connected layers", "", ("local_conv_param", "local_convolution_param")
    ),
}
"""By type."""

_OF_ROWS = f"{_ON_SPARK}: it names the class that reads the rows: remove it; {_AS_ROWS}"

FIELDS: dict[str, str] = {
    "source_class": _OF_ROWS,
    "lstm_param": "a fork with an LSTM layer of its own (junhyukoh/caffe-lstm): nothing here does the same",
    **{
        field: f"{known.whose}, for layers of type {kind}: {known.instead or 'BVLC Caffe has no such layer'}"
        for kind, known in FOREIGN_LAYERS.items()
        for field in known.fields
    },
}
"""By field of LayerParameter whose it is, and what to write instead."""

_BVLC = """
    AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data
    Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output
    HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM Log MVN MemoryData
    MultinomialLogisticLoss PReLU Parameter Pooling Power Python RNN ReLU Reduction Reshape SPP Scale Sigmoid
    SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""
BVLC_TYPES = frozenset(_BVLC.split())
"""Every layer type of BVLC Caffe."""


def about_type(name: str) -> str:
    """Whose a layer's type is, and what to write instead; empty for one that is BVLC Caffe's or nobody's.

    The older notations write types otherwise (`DENSE_IMAGE_DATA`), and are known as well.
    """
    kind = _BY_LETTERS.get(_letters(name))
    if kind is None:
        return ""
    known = FOREIGN_LAYERS[kind]
    return f"no layer of BVLC Caffe but of {known.whose}: {known.instead or 'nothing here does the same'}"


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


_BY_LETTERS = {_letters(kind): kind for kind in FOREIGN_LAYERS}
